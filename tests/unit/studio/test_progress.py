"""What a person sees of a run."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from studio.progress import display_for, duration, size, speed
from trainers import events


def stepped(step: int, loss: float = 0.5) -> events.Stepped:
    return events.Stepped(
        step=step,
        steps=10,
        loss=loss,
        learning_rate=1e-4,
        grad_norm=1.0,
        seconds_per_step=2.0,
        memory_bytes=3 * 2**30,
    )


def shown(*stream: events.Event, terminal: bool = False) -> str:
    file = io.StringIO()
    with display_for(Console(file=file, force_terminal=terminal, width=160)) as display:
        for event in stream:
            display.show(event)
    return file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_steps_show_loss_speed_memory_and_time_left(terminal: bool):
    text = shown(stepped(1), terminal=terminal)
    for part in ("loss 0.5000", "2.00 s/step", "3.0 GiB", "18 s left"):
        assert part in text


def test_without_a_terminal_there_is_not_a_line_for_every_step():
    text = shown(*(stepped(number) for number in range(1, 11)))
    assert [line.split(" ·")[0] for line in text.splitlines()] == ["step 1/10", "step 10/10"]


@pytest.mark.parametrize("terminal", [False, True])
def test_warnings_and_files_are_lines_of_their_own(terminal: bool):
    text = shown(
        events.Note(text="the [bold] cat", level="warning"),
        events.Sampled(step=1, path=Path("a/b.png")),
        events.Saved(step=1, path=Path("adapter.safetensors"), final=True),
        events.Finished(reason="done", step=10, seconds=61, adapter=None),
        terminal=terminal,
    )
    for part in ("the [bold] cat", "a/b.png", "Adapter: adapter.safetensors", "1 min 01 s"):
        assert part in text


def test_a_stage_that_ends_and_comes_again_is_shown_again():
    stream = [events.Progress(stage="samples", done=n, total=2) for n in (1, 2, 1, 2)]
    assert "samples" in shown(*stream, terminal=True)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (61, "1 min 01 s"), (7500, "2 h 05 min")])
def test_durations_are_read_at_a_glance(seconds: float, text: str):
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(10, "10 bytes"), (3 * 2**20, "3 MiB"), (5 * 2**30, "5.0 GiB")])
def test_sizes_are_in_the_unit_that_suits_them(count: int, text: str):
    assert size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.1, "10.0 steps/s"), (1.5, "1.50 s/step"), (0, "–")])
def test_a_speed_is_in_the_unit_that_suits_it(seconds: float, text: str):
    assert speed(seconds) == text
