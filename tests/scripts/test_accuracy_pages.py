"""What the pages, the log and the README say of accuracy is what the lines say."""

import json
import re
import statistics
from pathlib import Path

import accuracy_tables
import pytest

DOCS = Path(__file__).parents[2] / "docs"
FILES = ("accuracy", "equal_flops", "last_layer", "peers", "trials", "wide_first", "allocation")
# a page for each but the trials, and one more with another control: its lines, and the control
PAGES = {name: (name, "width") for name in FILES if name != "trials"}
PAGES["balanced"] = ("allocation", "width, balanced")
# rows of the README's table: the pages that they are of, and the arms
DENDRITES = ("accuracy", "equal_flops")
ROWS = {
    "the published method": (DENDRITES, ("correlation",)),
    "full dendrites by the task's gradient": (DENDRITES, ("gradient",)),
    "cheap shared dendrites": (DENDRITES, ("joint shared, cheap",)),
    "cheap dendrites that take no more FLOPs": (
        DENDRITES,
        ("joint shared, cheap, equal FLOPs", "joint full, cheap, equal FLOPs"),
    ),
    "a trial of cheap dendrites and width": (DENDRITES, ("auto",)),
    "distillation": (DENDRITES, ("width, distilled",)),
    "balanced widths against uniform": (("allocation",), ("width, balanced",)),
    "balanced widths that take no more FLOPs": (("allocation",), ("width, balanced, equal FLOPs",)),
    "the default of": (("allocation",), ("auto, balanced",)),
}


@pytest.fixture(scope="module")
def cells():
    found = {}
    for page, (name, control) in {**PAGES, "trials": ("trials", "width")}.items():
        text = (DOCS / "benchmarks" / f"{name}.jsonl").read_text()
        found[page] = accuracy_tables.cells_of(map(json.loads, text.splitlines()), control)
    return found


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_made_from_its_lines(name, cells):
    folder = DOCS / "benchmarks"
    page = (folder / f"{name}.md").read_text()
    title = page.splitlines()[0].removeprefix("# ")
    intro = (folder / f"{name}_intro.md").read_text()
    assert page == accuracy_tables.page(cells[name], intro, title, PAGES[name][1])


def test_differences_in_prose_are_those_of_cells(cells):
    every = [
        difference
        for of_file in cells.values()
        for cell in of_file.values()
        for difference in (cell.against, cell.against_val)
        if difference is not None
    ]
    log = (DOCS / "research.md").read_text()
    stated = re.findall(r"([+-]?\d*\.\d+) ± (\d*\.\d+)", log)
    assert len(stated) > 50
    wrong = [
        pair for pair in stated if not any(_is(pair[0], d.mean, pair[1], d.half) for d in every)
    ]
    assert wrong == []


def _is(mean, true_mean, half, true_half):
    unit = 10.0 ** -len(mean.partition(".")[2])
    return all(
        abs(float(text) - value) < 0.51 * unit
        for text, value in ((mean, true_mean), (half, true_half))
    )


def test_the_table_of_the_readme_is_that_of_the_lines(cells):
    rows = (DOCS.parent / "README.md").read_text().splitlines()
    for start, (names, arms) in ROWS.items():
        (row,) = [row for row in rows if row.startswith(f"| {start}")]
        own = [
            cell.against
            for name in names
            for (_, _, arm), cell in cells[name].items()
            if arm in arms
        ]
        verdicts = [difference.verdict for difference in own]
        mean = statistics.mean(difference.mean for difference in own)
        wanted = [str(len(own)), *(str(verdicts.count(v)) for v in (1, 0, -1)), f"{mean:+.2f}"]
        assert [part.strip() for part in row.split("|")[2:-1]] == wanted, start
