"""The queue: order, commands in every state, and who is taken for dead."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import pytest
from sqlalchemy import text

from adapters.errors import MissingError, UserInputError
from studio import locks
from studio.claims import Claim, Lost, claim_next, requeue_interrupted
from studio.queue import Queue
from studio.store import Ask, State, Summary, jobs
from studio.store.states import ACTIVE, ASKS, AT_ONCE, OVER, STATES, TOLD, WAITING
from tests.submissions import submission


def put(queue: Queue, id: str, state: State) -> None:
    with queue.store.writing() as session:
        session.execute(text("UPDATE jobs SET state = :state WHERE id = :id"), {"state": state, "id": id})


def claim(queue: Queue) -> Claim:
    found = claim_next(queue, "device-0")
    assert found is not None
    return found


def die(claimed: Claim) -> None:
    """What the kernel does for a process that was killed."""
    claimed.lock.release()


def order(queue: Queue) -> list[str]:
    return [job.id for job in queue.list_jobs(WAITING)]


# --- without torch ----------------------------------------------------------------------------------------


def test_the_queue_is_there_without_torch_and_the_command_line():
    code = "import sys, studio.queue, studio.workers, studio.job_texts; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


# --- submitting and order ---------------------------------------------------------------------------------


def test_a_job_keeps_what_it_was_asked_for(queue: Queue, tmp_path: Path):
    id = queue.submit(submission("sks dog", folder=tmp_path / "out", batch="b", resume=True))
    job = queue.get_job(id)
    assert (job.title, job.state, job.batch, job.base) == ("sks dog", "queued", "b", "embedded")
    assert job.run == tmp_path / "out"
    assert job.request == submission(resume=True).request


def test_a_folder_of_the_queues_own_is_named_by_the_id_alone(queue: Queue):
    job = queue.get_job(queue.submit(submission("../../etc ü/x")))
    assert job.run == queue.home / "runs" / job.id


def test_the_same_key_is_the_same_job(queue: Queue):
    first = queue.submit(submission("a", key="k"))
    assert queue.submit(submission("b", key="k")) == first
    assert queue.submit(submission("b", key="l")) != first
    assert len(queue.list_jobs()) == 2


def test_two_jobs_do_not_share_a_folder_until_one_is_over(queue: Queue, tmp_path: Path):
    first = queue.submit(submission(folder=tmp_path / "out"))
    with pytest.raises(UserInputError, match=f"folder of job {first}"):
        queue.submit(submission(folder=tmp_path / "out"))
    queue.send(first, "cancel")
    queue.submit(submission(folder=tmp_path / "out"))


def test_jobs_are_taken_in_the_order_of_their_submission(queue: Queue, three: list[str]):
    assert [claim(queue).job.id for _ in three] == three
    assert claim_next(queue, "device-0") is None


def test_a_clock_that_jumps_back_changes_no_order(queue: Queue, monkeypatch: pytest.MonkeyPatch):
    times = iter(datetime(2030, 1, 1, tzinfo=UTC) - timedelta(days=day) for day in range(100))
    monkeypatch.setattr(jobs, "now", lambda: next(times))
    ids = [queue.submit(submission()) for _ in range(3)]
    assert order(queue) == ids
    for id in ids:
        claimed = claim(queue)
        assert claimed.job.id == id
        claimed.begin()
        claimed.end("done")
    assert [job.id for job in queue.list_jobs(OVER)] == ids[::-1]


def test_a_clock_that_jumps_makes_nobody_dead_or_alive(queue: Queue, three: list[str], monkeypatch: pytest.MonkeyPatch):
    living, dead = claim(queue), claim(queue)
    die(dead)
    monkeypatch.setattr(jobs, "now", lambda: datetime(1970, 1, 1, tzinfo=UTC))
    assert queue.sweep() == [dead.job.id]
    monkeypatch.setattr(jobs, "now", lambda: datetime(2100, 1, 1, tzinfo=UTC))
    assert queue.sweep() == []
    assert queue.get_job(living.job.id).state == "preparing"


@pytest.mark.parametrize(("place", "wanted"), [(1, "cab"), (2, "acb"), (3, "abc"), (99, "abc")])
def test_a_waiting_job_is_moved_to_a_place(queue: Queue, three: list[str], place: int, wanted: str):
    assert "".join(job.title for job in queue.reorder(three[2], place)) == wanted
    assert order(queue) == [three["abc".index(name)] for name in wanted]


def test_only_waiting_jobs_have_a_place(queue: Queue, three: list[str]):
    claim(queue)
    with pytest.raises(UserInputError, match="preparing"):
        queue.reorder(three[0], 2)


def test_the_revision_stands_still_while_nothing_moves(queue: Queue, three: list[str]):
    before = queue.revision()
    queue.list_jobs(), queue.get_job(three[0]), queue.sweep()
    assert queue.revision() == before
    claim(queue)
    assert queue.revision() > before


def test_a_job_is_found_by_as_much_of_its_id_as_tells_it_apart(queue: Queue):
    ids = [queue.submit(submission()) for _ in range(2)]
    common = next(n for n in range(10) if ids[0][n] != ids[1][n])
    assert queue.get_job(ids[0][: common + 1]).id == ids[0]
    for wrong in ("", "nothing", "%"):
        with pytest.raises(MissingError, match="no job"):
            queue.get_job(wrong)


def test_an_id_that_begins_several_is_refused(queue: Queue, monkeypatch: pytest.MonkeyPatch):
    names = iter(["aab", "aac"])
    monkeypatch.setattr(jobs, "new_id", lambda: next(names))
    queue.submit(submission()), queue.submit(submission())
    with pytest.raises(UserInputError, match="Several"):
        queue.get_job("aa")


# --- commands ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ask", "state"), product(ASKS, STATES))
def test_a_command_is_done_told_or_refused_as_the_table_says(queue: Queue, ask: Ask, state: State):
    id = queue.submit(submission())
    put(queue, id, state)
    told = state in ACTIVE and ask in TOLD
    if state in AT_ONCE[ask]:
        assert queue.send(id, ask).state == AT_ONCE[ask][state]
    elif told:
        assert queue.send(id, ask).state == state
    else:
        with pytest.raises(UserInputError, match=state):
            queue.send(id, ask)
    with queue.store.reading() as session:
        assert jobs.asked(session, id) == ([ask] if told else [])


def test_a_worker_hears_each_command_once(queue: Queue, three: list[str]):
    claimed = claim(queue)
    for ask in ("save", "save", "sample"):
        queue.send(three[0], ask)
    assert claimed.asked() == ["save", "sample"]
    claimed.obeyed("save")
    assert claimed.asked() == ["sample"]


def test_commands_do_not_outlive_the_attempt_that_they_were_for(queue: Queue, three: list[str]):
    claimed = claim(queue)
    queue.send(three[0], "pause"), queue.send(three[0], "save")
    claimed.end("paused")
    die(claimed)
    queue.send(three[0], "resume")
    assert claim(queue).asked() == []


@pytest.mark.parametrize("state", [state for state in STATES if state not in ("failed", "cancelled")])
def test_only_what_failed_or_was_cancelled_is_tried_again(queue: Queue, state: State):
    id = queue.submit(submission())
    put(queue, id, state)
    with pytest.raises(UserInputError, match=state):
        queue.retry(id)


def test_a_job_that_is_tried_again_goes_to_the_end(queue: Queue, three: list[str]):
    queue.send(three[0], "cancel")
    queue.retry(three[0])
    assert order(queue) == [*three[1:], three[0]]


def test_a_paused_job_goes_on_in_its_old_place(queue: Queue, three: list[str]):
    queue.send(three[0], "pause")
    assert order(queue) == three[1:]
    queue.send(three[0], "resume")
    assert order(queue) == three


# --- claims and deaths ------------------------------------------------------------------------------------


def _claim_all(home: Path) -> list[str]:
    queue, taken = Queue(home), []
    while claimed := claim_next(queue, "device-0"):
        claimed.begin()
        claimed.end("done")
        claimed.lock.release()
        taken.append(claimed.job.id)
    return taken


def test_processes_that_claim_at_once_never_take_the_same_job(queue: Queue):
    ids = {queue.submit(submission()) for _ in range(24)}
    with ProcessPoolExecutor(3, mp_context=get_context("forkserver")) as pool:
        taken = [id for part in pool.map(_claim_all, [queue.home] * 3) for id in part]
    assert len(taken) == len(ids) and set(taken) == ids


def test_a_job_whose_folder_is_in_use_is_left_for_later(queue: Queue, three: list[str]):
    by_hand = locks.hold(locks.run_lock(queue.get_job(three[0]).run))
    assert by_hand is not None
    assert claim(queue).job.id == three[1]
    by_hand.release()
    assert claim(queue).job.id == three[0]


def test_a_job_whose_folder_cannot_be_made_fails_and_holds_nobody_up(queue: Queue, tmp_path: Path):
    (tmp_path / "file").touch()
    bad = queue.submit(submission(folder=tmp_path / "file" / "out"))
    good = queue.submit(submission())
    assert claim(queue).job.id == good
    job = queue.get_job(bad)
    assert job.state == "failed" and job.failure is not None and str(tmp_path / "file") in job.failure.what


def test_the_living_are_not_swept(queue: Queue, three: list[str]):
    claimed = claim(queue)
    claimed.begin()
    assert queue.sweep() == []
    assert queue.get_job(three[0]).state == "running"


@pytest.mark.parametrize("running", [False, True])
def test_a_job_whose_worker_died_is_interrupted_and_goes_on_first(queue: Queue, three: list[str], running: bool):
    claimed = claim(queue)
    if running:
        claimed.begin()
    die(claimed)
    assert queue.sweep() == [three[0]]
    assert queue.get_job(three[0]).state == "interrupted"
    requeue_interrupted(queue)
    again = claim(queue)
    assert (again.job.id, again.job.attempts, again.job.crashes) == (three[0], 2, 1)


def test_a_job_whose_disk_is_away_holds_no_sweep_up(queue: Queue, three: list[str]):
    away, dead = claim(queue), claim(queue)
    die(away), die(dead)
    away.job.run.rename(away.job.run.with_name("away"))
    away.job.run.touch()
    assert queue.sweep() == [dead.job.id]
    away.job.run.unlink()
    assert queue.sweep() == [away.job.id]


@pytest.mark.parametrize(("ask", "state"), [("cancel", "cancelled"), ("pause", "paused")])
def test_what_a_job_was_told_holds_though_its_worker_died(queue: Queue, three: list[str], ask: Ask, state: State):
    claimed = claim(queue)
    queue.send(three[0], ask)
    die(claimed)
    queue.sweep()
    assert queue.get_job(three[0]).state == state


def test_a_job_that_kills_its_workers_is_given_up_with_a_reason(queue: Queue, three: list[str]):
    for _ in range(3):
        die(claim(queue))
        queue.sweep()
        requeue_interrupted(queue)
    job = queue.get_job(three[0])
    assert job.state == "failed" and job.failure is not None
    assert "died 3 times" in job.failure.what and job.failure.remedy == "low-memory"
    assert claim(queue).job.id == three[1]


def test_a_checkpoint_makes_up_for_the_crashes_before_it(queue: Queue, three: list[str]):
    for _ in range(5):
        claimed = claim(queue)
        claimed.begin()
        claimed.report(Summary(step=1), saved=True)
        die(claimed)
        queue.sweep()
        requeue_interrupted(queue)
    assert queue.get_job(three[0]).state == "queued"


def test_a_worker_whose_job_was_taken_from_it_can_do_it_no_harm(queue: Queue, three: list[str]):
    """Its folder was deleted, and with it the lock that others looked at."""
    old = claim(queue)
    locks.run_lock(old.job.run).unlink()
    queue.sweep()
    requeue_interrupted(queue)
    new = claim(queue)
    assert new.job.id == old.job.id
    for act in (lambda: old.report(Summary(step=9)), old.begin, lambda: old.end("done")):
        with pytest.raises(Lost):
            act()
    new.begin()
    assert queue.get_job(new.job.id).progress.step == 0
