"""A run's events: read as one course though it was interrupted, and read on from anywhere."""

from __future__ import annotations

import pytest

from studio.event_log import course
from studio.queue import Queue
from trainers.events import Event, Note, Started, Stepped, Validated


def started(step: int) -> Started:
    return Started(
        step=step, steps=9, trainable_parameters=1, pictures=1, base="embedded", device="cpu", precision="float32"
    )


def stepped(step: int) -> Stepped:
    return Stepped(
        step=step, steps=9, loss=0.5, learning_rate=1e-4, grad_norm=1.0, seconds_per_step=1.0, memory_bytes=1
    )


def test_steps_that_were_done_again_are_in_the_course_once():
    first: list[Event] = [started(0), *(stepped(n) for n in range(1, 6)), Validated(step=5, loss=1, base_loss=1)]
    second: list[Event] = [Note(text="again"), started(3), *(stepped(n) for n in range(4, 9))]
    kept = [event.step for event in course([*first, *second]) if isinstance(event, Stepped)]
    assert kept == list(range(1, 9))


def test_what_stands_beside_the_steps_is_kept():
    events: list[Event] = [Note(text="a"), started(0), stepped(1), Note(text="b"), started(0), stepped(1)]
    assert [e for e in course(events) if isinstance(e, Note)] == [Note(text="a"), Note(text="b")]


def test_events_are_followed_from_where_one_stopped_reading(queue: Queue, three: list[str]):
    log = queue.get_job(three[0]).run / "events.jsonl"
    assert queue.follow(three[0]).events == []
    log.parent.mkdir(parents=True)
    log.write_text(Note(text="eins ü").model_dump_json() + "\n" + '{"kind":"no')
    first = queue.follow(three[0])
    assert first.events == [Note(text="eins ü")]
    log.write_text(Note(text="eins ü").model_dump_json() + "\n" + Note(text="two").model_dump_json() + "\n")
    second = queue.follow(three[0], first.offset)
    assert second.events == [Note(text="two")]
    assert queue.follow(three[0], second.offset).events == []


@pytest.mark.parametrize("text", ["new", "a new one that is longer than the one before"])
def test_a_log_that_was_begun_anew_is_read_from_its_start(queue: Queue, three: list[str], text: str):
    log = queue.get_job(three[0]).run / "events.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text(Note(text="a long one").model_dump_json() + "\n")
    offset = queue.follow(three[0]).offset
    log.write_text(Note(text=text).model_dump_json() + "\n")
    assert queue.follow(three[0], offset).events == [Note(text=text)]
