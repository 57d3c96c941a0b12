"""What axe-core finds in the pages: nothing that it calls serious or critical, in either light."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: the web pages were not tested")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no page was opened")
pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: no page was examined")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from studio.failures import Failure
from tests.ui.conftest import BEARABLE, Server, opened
from tests.ui.puppet import Puppet
from ui.app import pages

_WORST = ("serious", "critical")


def serious(page: Any, *rules: str) -> list[str]:
    """A line for each element at fault, in the light that the page is in; by all rules if none is named."""
    found = Axe().run(page, options={"runOnly": list(rules)} if rules else None).response["violations"]
    return [
        f"{one['id']}: {node['html'][:200]}: {node['failureSummary']}"
        for one in found
        if one["impact"] in _WORST
        for node in one["nodes"]
    ]


def check(page: Any) -> None:
    """Examines the page as it stands, in the one light and in the other."""
    for scheme, rules in (("light", ()), ("dark", ("color-contrast",))):  # the other rules ask for no colour
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.wait_for_function(f"document.body.classList.contains('dark') === {str(scheme == 'dark').lower()}")
        page.wait_for_function("document.getAnimations().every(one => one.playState !== 'running')")
        assert serious(page, *rules) == [], scheme


@pytest.mark.parametrize("path", [f"/{one.path}" for one in pages()])
def test_a_page_has_nothing_serious(page: Any, path: str) -> None:
    page.goto(path)
    expect(page.locator("#strip .s-strip")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    check(page)


def test_the_login_has_nothing_serious(browser: Any, guarded: Server) -> None:
    refused = re.compile(f"{BEARABLE.pattern}|status of 401")
    with opened(browser, guarded.url, refused) as page:
        page.goto("/library")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.get_by_label("Password").fill("guess")
            page.get_by_label("Password").press("Enter")
            expect(page.get_by_role("alert")).to_contain_text("not the password")
            assert serious(page) == [], scheme
        page.get_by_label("Password").fill("open sesame")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Library")


def test_a_form_with_everything_open_and_wrong_has_nothing_serious(page: Any) -> None:
    page.goto("/new?sample=1")
    expect(page.locator(".s-picture")).to_have_count(5)
    # The draft has come: it overwrites nothing that is typed from here on.
    expect(page.get_by_label("What it is, in a word")).not_to_have_value("")
    page.get_by_label("What it is, in a word").fill("")
    page.get_by_role("button", name="More control").click()
    page.locator('[id="knob-steps"]').fill("many")
    page.get_by_role("button", name="Start learning").click()
    expect(page.locator("#class-problem")).to_be_visible()
    for level in page.locator("#knobs summary").all()[1:]:
        level.click()
    check(page)
    page.locator('[id="knob-steps"]').fill("7")
    page.get_by_label("What it is, in a word").fill("octopus")
    for tab, holds in (("As YAML", "#yaml"), ("As a command", "#command")):
        page.get_by_role("tab", name=tab).click()
        expect(page.locator(f"{holds} .cm-line").first).to_be_visible()
        check(page)


def test_a_run_has_nothing_serious_in_whatever_state(staged_page: Any, puppet: Puppet) -> None:
    running = puppet.step("it runs")
    waiting, paused, third = (puppet.submit(f"number {number}") for number in range(3))
    puppet.queue.send(paused, "pause")
    for path, shows in (
        ("/", "number 2"),
        (f"/run?job={running.job.id}", "Save now"),
        (f"/run?job={waiting}", "waits its turn"),
        (f"/run?job={paused}", "Resume"),
        ("/run?job=nothing", "No such run"),
    ):
        staged_page.goto(path)
        expect(staged_page.locator(".s-page")).to_contain_text(shows, ignore_case=True)
        check(staged_page)
    puppet.queue.send(third, "cancel")
    running.end("failed", Failure("The GPU ran out of memory.", "Take less.", 1, "low-memory"))
    for path, shows in ((f"/run?job={running.job.id}", "Try again with low memory"), ("/", "did not work out")):
        staged_page.goto(path)
        expect(staged_page.locator(".s-page")).to_contain_text(shows)
        check(staged_page)
