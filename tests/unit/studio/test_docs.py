"""The generated pages are those of this code, and pages link only to what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import generate
from studio import schema
from studio.store.states import STATES, TRANSITIONS

ROOT = Path(__file__).parents[3]


PAGES = [
    ("cli.md", generate.cli_page),
    ("config.md", generate.config_page),
    ("adapters.md", generate.adapters_page),
]


@pytest.mark.parametrize(("name", "page"), PAGES)
def test_a_generated_page_is_up_to_date(name: str, page: object):
    assert callable(page)
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == page(), "run make docs"


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_every_link_leads_to_a_file(page: Path):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_page_of_jobs_has_the_table_of_states():
    rows = re.findall(r"^\| (\w+) \| .* \| ([^|]*) ?\|$", (ROOT / "docs" / "jobs.md").read_text(), re.MULTILINE)
    told = {name: {word for word in re.findall(r"\w+", after) if word in STATES} for name, after in rows}
    assert {name: told[name] for name in STATES} == {name: set(after) for name, after in TRANSITIONS.items()}


def test_every_key_has_a_meaning():
    assert [key.name for key in schema.all_keys() if not key.meaning] in ([], ["adapter.method"])
