"""Decisions have one form and one index, and links of all pages lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "decisions"
DECISIONS = {path.name: path.read_text() for path in sorted(FOLDER.glob("[0-9]*.md"))}
SUBSYSTEMS = {path.parent.name for path in (ROOT / "pbcompress").glob("*/__init__.py")}
SUBSYSTEMS |= {"pipeline", "project"}
FORM = re.compile(
    r"# (?P<number>\d{4})\. (?P<title>[A-Z][^\n]+[^.\n])\n\n"
    r"- Status: (?P<status>[^\n]+)\n"
    r"- Date: \d{4}-\d\d-\d\d\n"
    r"- Subsystem: (?P<subsystem>\w+)\n\n"
    r"## Context\n\n(?P<context>.+)\n\n"
    r"## Decision\n\n(?P<decision>.+)\n\n"
    r"## Alternatives\n\n(?P<alternatives>.+)\n",
    re.DOTALL,
)
SUPERSEDED = re.compile(r"superseded by \[(\d{4})\]\(([^)]+)\)")
LINE = re.compile(r"- \[(?P<number>\d{4})\]\((?P<name>[^)]+)\) (?P<title>.+)")
PAGES = [
    path
    for path in sorted(ROOT.rglob("*.md"))
    if path.relative_to(ROOT).parts[0][0] != "." and "node_modules" not in path.parts
]
SHOWN = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)  # code, in which brackets are no links
LINK = re.compile(r"(?:\]\(|^\[[^\]]+\]: )([^)\s]+)", re.MULTILINE)


def test_decisions_are_numbered_without_gaps():
    assert len(DECISIONS) == 156
    assert [name[:5] for name in DECISIONS] == [f"{n:04d}-" for n in range(1, len(DECISIONS) + 1)]


@pytest.mark.parametrize("name", DECISIONS)
def test_a_decision_has_its_form_and_fits_on_a_screen(name):
    found = FORM.fullmatch(DECISIONS[name])
    assert found, f"{name}: title, status, date, subsystem, context, decision, alternatives"
    assert found["number"] == name[:4]
    assert found["subsystem"] in SUBSYSTEMS
    assert DECISIONS[name].count("\n## ") == 3
    assert DECISIONS[name].count("\n") <= 80
    assert max(map(len, DECISIONS[name].splitlines())) <= 120


def test_a_decision_is_accepted_or_names_its_successor():
    successors = {}
    for name, text in DECISIONS.items():
        status = FORM.fullmatch(text)["status"]
        if status != "accepted":
            successors[name[:4]] = SUPERSEDED.fullmatch(status)
    assert len(successors) == 16
    for number, successor in successors.items():
        assert successor, number
        assert successor[2] in DECISIONS
        assert number < successor[1] == successor[2][:4]


def test_the_index_has_every_decision_once_under_its_subsystem():
    listed, subsystem = {}, None
    for line in (FOLDER / "README.md").read_text().splitlines():
        if line.startswith("## "):
            subsystem = line[3:]
        elif entry := LINE.fullmatch(line):
            assert entry["name"] not in listed
            listed[entry["name"]] = (entry["number"], subsystem, entry["title"])
    assert listed.keys() == DECISIONS.keys()
    for name, text in DECISIONS.items():
        found = FORM.fullmatch(text)
        successor = SUPERSEDED.fullmatch(found["status"])
        mark = f", superseded by {successor[1]}" if successor else ""
        assert listed[name] == (name[:4], found["subsystem"], found["title"] + mark)


def test_every_relative_link_of_a_page_leads_somewhere():
    checked = 0
    for page in PAGES:
        for target in LINK.findall(SHOWN.sub("", page.read_text())):
            path, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            there = _read_in(page) / path if path else page
            assert there.exists(), f"{page.relative_to(ROOT)}: {target}"
            assert not anchor or anchor in _anchors(there), f"{page.relative_to(ROOT)}: {target}"
            checked += 1
    assert checked > 200


def _read_in(page):
    """The folder in which a page is read: an introduction of results stands on the page of them."""
    is_part = page.name == "intro.md" or page.parent.name == "intros"
    return ROOT / "docs" / "benchmarks" if is_part else page.parent


def _anchors(page):
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
