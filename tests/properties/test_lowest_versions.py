"""The constraints of `make test-lowest` are the lowest versions that the project allows."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def floors() -> dict[str, str]:
    extras = PROJECT["optional-dependencies"].values()
    requirements = [*PROJECT["dependencies"], *(line for lines in extras for line in lines)]
    found = (re.match(r"([\w.-]+)>=([\w.]+)", requirement) for requirement in requirements)
    return {match[1]: match[2] for match in found if match}


def full(version: str) -> str:
    """Return a version without zeros at its end: 2.9 is 2.9.0."""
    return re.sub(r"(\.0)+$", "", version)


def test_every_floor_is_pinned_and_nothing_else() -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert len(pins) == 28
    assert {name: full(v) for name, v in pins.items()} == {n: full(v) for n, v in floors().items()}
