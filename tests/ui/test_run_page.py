"""The page of a run while something happens to the run, its worker or the server. The worker is a puppet."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no page was opened")

from playwright.sync_api import expect

from studio.claims import requeue_interrupted
from studio.queue import MAX_CRASHES
from studio.store import Summary
from tests.ui.conftest import BEARABLE, Staged, opened
from tests.ui.puppet import STEPS, Puppet

AWAY = re.compile(BEARABLE.pattern + "|net::ERR_|Failed to fetch")


def test_a_reload_and_a_second_tab_show_the_run_as_it_goes_on(staged_page: Any, puppet: Puppet) -> None:
    claim = puppet.step("looked at twice")
    staged_page.goto(f"/run?job={claim.job.id}")
    expect(staged_page.locator("#phase")).to_contain_text(f"step 3 of {STEPS}", ignore_case=True)
    staged_page.reload()
    second = staged_page.context.new_page()
    second.goto(staged_page.url)
    claim.report(Summary(step=9, steps=STEPS, loss=0.1))
    for tab in (staged_page, second):
        expect(tab.locator("#phase")).to_contain_text(f"step 9 of {STEPS}", ignore_case=True)
        expect(tab.locator("#strip")).to_contain_text("step 9")


def test_pages_go_on_by_themselves_when_the_server_is_started_again(
    browser: Any, staged: Staged, puppet: Puppet
) -> None:
    claim = puppet.step("outlives the server")
    with opened(browser, staged.server.url, AWAY) as page:
        form = page.context.new_page()
        form.goto("/new")
        form.get_by_label("What you call it").fill("Otto")
        form.get_by_label("What you call it").press("Tab")
        expect(form.locator("#review")).to_contain_text("Still missing")
        page.goto(f"/run?job={claim.job.id}")
        expect(page.locator("#phase")).to_contain_text("step 3", ignore_case=True)
        staged.server.stop()
        expect(page.locator("body")).to_contain_text("Connection to the server was lost")
        claim.report(Summary(step=9, steps=STEPS, loss=0.1))
        staged.server.start()
        expect(page.locator("#phase")).to_contain_text("step 9", ignore_case=True)
        expect(form.get_by_label("What you call it")).to_have_value("Otto")
        expect(form.locator("body")).not_to_contain_text("Connection to the server was lost")


def test_a_run_whose_worker_died_says_so_and_goes_on_with_the_next(staged_page: Any, puppet: Puppet) -> None:
    claim = puppet.step("loses its worker")
    staged_page.goto(f"/run?job={claim.job.id}")
    expect(staged_page.locator("#phase")).to_contain_text("step 3", ignore_case=True)
    puppet.die(claim)
    expect(staged_page.locator("#phase")).to_contain_text("was interrupted and goes on by itself", ignore_case=True)
    requeue_interrupted(puppet.queue)
    puppet.claim().begin()
    expect(staged_page.locator("#phase")).to_contain_text("step 3", ignore_case=True)


def test_a_run_that_keeps_killing_its_worker_says_why_and_offers_less_memory(staged_page: Any, puppet: Puppet) -> None:
    id = puppet.submit("kills its workers")
    for _ in range(MAX_CRASHES):
        requeue_interrupted(puppet.queue)
        puppet.bury(puppet.claim())
    staged_page.goto(f"/run?job={id}")
    expect(staged_page.locator("#run-failure")).to_contain_text(f"died {MAX_CRASHES} times")
    staged_page.get_by_role("button", name="Try again with low memory").click()
    staged_page.wait_for_url(lambda url: "/run?job=" in url and id not in url)
    expect(staged_page.locator("#phase")).to_contain_text("waits its turn", ignore_case=True)


@pytest.mark.parametrize("phase", [Puppet.prepare, Puppet.step, Puppet.draw])
def test_a_run_is_stopped_from_its_page_in_each_phase(
    staged_page: Any, puppet: Puppet, phase: Callable[[Puppet, str], Any]
) -> None:
    claim = phase(puppet, "to be stopped")
    staged_page.goto(f"/run?job={claim.job.id}")
    staged_page.get_by_role("button", name="Stop").click()
    expect(staged_page.locator("#run-asked")).to_contain_text("It stops after this step")
    assert claim.asked() == ["cancel"]
    claim.end("cancelled")
    expect(staged_page.locator("#phase")).to_contain_text("was stopped", ignore_case=True)
    expect(staged_page.get_by_role("button", name="Go on after all")).to_be_visible()
    expect(staged_page.locator("#run-asked")).to_have_count(0)


def test_a_waiting_run_is_stopped_at_once(staged_page: Any, puppet: Puppet) -> None:
    id = puppet.submit("never begun")
    staged_page.goto(f"/run?job={id}")
    staged_page.get_by_role("button", name="Stop").click()
    expect(staged_page.locator("#phase")).to_contain_text("was stopped", ignore_case=True)
    assert puppet.queue.get_job(id).state == "cancelled"
    expect(staged_page.locator("#run-asked")).to_have_count(0)


def test_a_start_pressed_twice_and_in_two_tabs_is_one_job(staged_page: Any, puppet: Puppet) -> None:
    before = len(puppet.queue.list_jobs())
    staged_page.goto("/new?sample=1")
    staged_page.wait_for_url("**/new?draft=*")
    second = staged_page.context.new_page()
    second.goto(staged_page.url)
    for tab in (staged_page, second):
        expect(tab.locator("#review")).to_contain_text("5 pictures")
    staged_page.get_by_role("button", name="Start learning").dblclick(no_wait_after=True)
    second.get_by_role("button", name="Start learning").click()
    for tab in (staged_page, second):
        tab.wait_for_url("**/run?job=*")
    assert staged_page.url == second.url
    assert len(puppet.queue.list_jobs()) == before + 1
