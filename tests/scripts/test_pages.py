"""What pages, log, results and README say is what the lines of the benchmarks say."""

import itertools
import re
import statistics
from pathlib import Path

import pytest

from scripts.accuracy.cells import from_csv, to_csv
from scripts.accuracy.tables import PAGES
from scripts.dendrites import tables as dendrites
from scripts.front import glance, reference
from scripts.importance import tables as importance
from scripts.int8 import tables as int8
from scripts.lenet import tables as lenet
from scripts.lines import DOCS, read_lines
from scripts.paired import paired
from scripts.planner import tables as planner
from scripts.recovery import tables as recovery
from scripts.speed import tables as speed

ROOT = Path(__file__).parents[2]
# rows of the table of results: the pages that they are of, and the arms
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
    "accurate widths against uniform": (("allocation",), ("width, balanced",)),
    "accurate widths that take no more FLOPs": (("allocation",), ("width, balanced, equal FLOPs",)),
    "accurate widths, and that trial": (("allocation",), ("auto, balanced",)),
}


@pytest.fixture(scope="module")
def cells():
    return {name: from_csv((DOCS / f"{name}.csv").read_text()) for name in PAGES}


# --- accuracy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_cells_are_those_of_the_lines(name):
    assert (DOCS / f"{name}.csv").read_text() == to_csv(PAGES[name].cells())


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if page.title])
def test_a_page_is_made_from_its_cells(name, cells):
    assert (DOCS / f"{name}.md").read_text() == PAGES[name].text(cells[name])


def test_differences_in_prose_are_those_of_cells(cells):
    every = [
        difference
        for of_file in cells.values()
        for cell in of_file
        for difference in (cell.against, cell.against_val)
        if difference is not None
    ]
    every += _between_arms(read_lines(Path(speed.__file__).with_name("lines.jsonl.gz")))
    log = (ROOT / "docs" / "research.md").read_text()
    stated = re.findall(r"([+-]?\d*\.\d+) ± (\d*\.\d+)", log)
    assert len(stated) > 50
    wrong = [
        pair for pair in stated if not any(_is(pair[0], d.mean, pair[1], d.half) for d in every)
    ]
    assert wrong == []


def _between_arms(lines):
    """Return the differences between all arms of trained networks, on test and on validation."""
    cells = {}
    for line in (line for line in lines if "task" in line):
        for split in ("test", "val"):
            cell = cells.setdefault((line["task"], line["target"], split), {})
            cell.setdefault(line["arm"], {})[line["seed"]] = 100 * line[split]
    return [
        paired(one, other)
        for cell in cells.values()
        for one, other in itertools.permutations(cell.values(), 2)
        if len(one.keys() & other.keys()) > 1
    ]


def _is(mean, true_mean, half, true_half):
    unit = 10.0 ** -len(mean.partition(".")[2])
    return all(
        abs(float(text) - value) < 0.51 * unit
        for text, value in ((mean, true_mean), (half, true_half))
    )


def test_the_table_of_results_is_that_of_the_cells(cells):
    rows = (ROOT / "docs" / "results.md").read_text().splitlines()
    for start, (names, arms) in ROWS.items():
        (row,) = [row for row in rows if row.startswith(f"| {start}")]
        own = [cell.against for name in names for cell in cells[name] if cell.arm in arms]
        verdicts = [difference.verdict for difference in own]
        mean = statistics.mean(difference.mean for difference in own)
        wanted = [str(len(own)), *(str(verdicts.count(v)) for v in (1, 0, -1)), f"{mean:+.2f}"]
        assert [part.strip() for part in row.split("|")[2:-1]] == wanted, start


# --- where a line is a cell -----------------------------------------------------------------------


@pytest.mark.parametrize("tables", [dendrites, importance, int8, lenet, planner, recovery, speed])
def test_a_page_is_made_from_its_lines(tables):
    packed = Path(tables.__file__).with_name("lines.jsonl.gz")
    name = packed.parent.name
    assert tables.page(read_lines(packed)) == (DOCS / f"{name}.md").read_text()


def test_the_page_of_dendrites_has_a_row_for_each_line():
    lines = read_lines(Path(dendrites.__file__).with_name("lines.jsonl.gz"))
    assert len(lines) == 7 * 13 + 4 + 4 + 5
    assert dendrites.page(lines).count("\n| ") == len(lines) + 2 * 10  # two heads of each table


def test_every_line_tells_its_commit():
    files = sorted((ROOT / "scripts").rglob("*.jsonl.gz"))
    assert len(files) == 24
    for path in files:
        assert all(re.fullmatch("[0-9a-f]{7,}", line["commit"]) for line in read_lines(path)), path


# --- README and results ---------------------------------------------------------------------------


def _gains():
    """Yield, for each task, how far the default is above the original at a quarter of the size."""
    page = (DOCS / "default.md").read_text()
    for part in page.split("\n## ")[1:]:
        original = re.search(r"Original network: .* parameters, ([\d.]+) % on test", part)
        row = re.search(r"^\| default \|(.*)\|$", part, re.MULTILINE)
        yield float(row[1].split("|")[3]) - float(original[1])


def test_figures_of_the_readme_are_those_of_the_pages():
    readme = (ROOT / "README.md").read_text()
    results = (ROOT / "docs" / "results.md").read_text()
    lines = read_lines(Path(speed.__file__).with_name("lines.jsonl.gz"))
    timed = [line for line in lines if "network" in line]
    for target in (0.5, 0.25):
        rows = speed.rows_of(timed, target).values()
        mean = {
            arm: statistics.geometric_mean(speed.speed_up(own[arm]) for own in rows)
            for arm in ("default", "fast", "torch-pruning")
        }
        pairs = [speed.fair_pair(own) for own in rows]
        fair = statistics.geometric_mean(speed.speed_up(a) / speed.speed_up(b) for a, b in pairs)
        assert len(pairs) == 12
        for text in (readme, results):
            assert f"{mean['default']:.2f} times" in text
            assert f"{fair:.2f}" in text
        assert f"{mean['fast'] / mean['torch-pruning']:.2f}" in results
    points = list(_gains())
    assert len(points) == 11
    assert f"{abs(statistics.median(points)):.1f} points less (median of 11" in readme
    assert f"the worst lost {-min(points):.1f})" in readme


def test_counts_of_networks_in_the_readme_are_those_of_the_planner():
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (?:torchvision|timm|huggingface) \|(.*)\|$", _page("planner"), re.M)
    tried, landed, _, exported, equal, differ = (
        sum(int(float(row.split("|")[place])) for row in rows) for place in range(6)
    )
    assert len(rows) == 3
    assert differ == 0
    assert f"{landed} of {tried} networks" in readme
    assert f"{equal} of {exported} exported files equal" in readme
    assert f"{exported - equal} cannot be exported" in readme


def test_the_picture_of_the_readme_is_made_from_the_lines():
    assert (ROOT / "docs" / "assets" / "glance.svg").read_text() == glance.made()


def _page(name):
    return (DOCS / f"{name}.md").read_text()


def test_pages_of_reference_are_made_from_the_code(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    folder = ROOT / "docs" / "reference"
    assert reference.command_line() == (folder / "cli.md").read_text()
    assert reference.recipe() == (folder / "recipe.md").read_text()
