"""The page of what dendrites cost is made of its lines."""

import json
from pathlib import Path

import dendrite_tables

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"


def test_the_page_is_that_of_its_lines() -> None:
    text = (FOLDER / "dendrites.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == 7 * 13 + 4 + 5
    page = dendrite_tables.page(lines)
    assert page == (FOLDER / "dendrites.md").read_text()
    assert page.count("\n| ") == len(lines) + 2 * 9  # a row for each, and two heads of each table
