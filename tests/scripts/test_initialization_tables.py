"""The page of first weights has the tables of its lines."""

import json
from pathlib import Path

import initialization_tables

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"


def test_the_page_has_the_tables_of_its_lines() -> None:
    text = (FOLDER / "initialization_accuracy.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    tables = initialization_tables.tables(lines)
    page = (FOLDER / "initialization.md").read_text()
    assert len(tables) == 2
    for table in tables:
        assert table.count("\n") == 2 + 7 * 2
        assert f"\n\n{table}\n" in page


def test_first_weights_are_all_that_the_arms_differ_in() -> None:
    text = (FOLDER / "initialization_accuracy.jsonl").read_text()
    found = {}
    for line in map(json.loads, text.splitlines()):
        found[line["task"], line["target"], line["seed"], line["arm"]] = line
    spectral = [key for key in found if key[3].endswith(", spectral")]
    assert len(spectral) >= 2 * 7 * 2 * 10
    for *cell, arm in spectral:
        one, other = found[*cell, arm], found[*cell, arm.removesuffix(", spectral")]
        assert one["config"]["dendrites"].pop("initialization") == "spectral"
        assert other["config"]["dendrites"].pop("initialization") == "random"
        for key in ("config", "base", "params", "flops", "steps"):
            assert one[key] == other[key]
