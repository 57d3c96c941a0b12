"""A long run on its page: what it takes of the page and of the server, at each look."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no page was opened")

from playwright.sync_api import expect

from studio.store import Summary
from tests.ui.puppet import Puppet, started, stepped, write
from ui.course import Courses
from ui.pages.run import drawn
from ui.studio import Studio

STEPS, EACH = 5_000, 500
BEARABLE_MS = 200
_WATCH = """() => {
  window.long = [];
  window.redrawn = 0;
  new MutationObserver(() => window.redrawn++)
    .observe(document.querySelector('#loss'), {subtree: true, childList: true, attributes: true});
  new PerformanceObserver(list => list.getEntries().forEach(one => window.long.push(one.duration)))
    .observe({type: 'longtask'});
}"""

_BLOCK = """() => setTimeout(() => { const begun = performance.now(); while (performance.now() - begun < 150); }, 0)"""


def _go(puppet: Puppet, claim: Any, done: int) -> None:
    write(claim.job, (stepped(step, STEPS) for step in range(done - EACH + 1, done + 1)))
    claim.report(Summary(step=done, steps=STEPS, loss=0.1, seconds_per_step=0.5))


def test_a_page_is_never_blocked_by_a_run_of_5000_steps(staged_page: Any, puppet: Puppet) -> None:
    claim = puppet.prepare("long")
    claim.begin()
    write(claim.job, [started(STEPS)])
    _go(puppet, claim, EACH)
    staged_page.goto(f"/run?job={claim.job.id}")
    expect(staged_page.locator("#loss canvas, #loss svg").first).to_be_visible()
    staged_page.wait_for_timeout(1000)  # what the page itself takes to come is not a tick
    staged_page.evaluate(_WATCH)
    staged_page.evaluate(_BLOCK)
    staged_page.wait_for_function("window.long.length > 0")  # it sees what blocks
    staged_page.evaluate("() => { window.long = []; window.redrawn = 0; }")
    for done in range(2 * EACH, STEPS + 1, EACH):
        _go(puppet, claim, done)
        expect(staged_page.locator("#phase")).to_contain_text(f"step {done} of {STEPS}", ignore_case=True)
    staged_page.wait_for_timeout(1000)
    tasks = staged_page.evaluate("window.long")
    print("long tasks, ms:", [round(task) for task in sorted(tasks, reverse=True)])
    assert staged_page.evaluate("window.redrawn") > 0
    assert max(tasks, default=0) < BEARABLE_MS


def test_the_server_draws_a_run_of_5000_steps_in_a_moment(puppet: Puppet) -> None:
    claim = puppet.prepare("long")
    claim.begin()
    write(claim.job, [started(STEPS)])
    studio = Studio(puppet.queue)
    courses, taken = Courses(puppet.queue), list[float]()
    for done in range(EACH, STEPS + 1, EACH):
        _go(puppet, claim, done)
        begun = time.process_time()
        drawn(studio, courses, claim.job.id)
        taken.append(1000 * (time.process_time() - begun))
    print("a look of the server, ms:", [round(one) for one in taken])
    assert max(taken[1:]) < BEARABLE_MS
