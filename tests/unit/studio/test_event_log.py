"""The events of a run that was interrupted, read as one course."""

from __future__ import annotations

from studio.event_log import course
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
