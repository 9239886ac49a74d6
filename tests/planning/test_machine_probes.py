"""The one measurement of a machine: made once, kept, and made again where that was damaged."""

import json

import pytest

from pbcompress.costs.latency_model import PROBE_WIDTHS
from pbcompress.planning import machine_probes
from pbcompress.planning.machine_probes import KINDS, machine_multiples

COSTS = {
    "convolution": (2.0, 1.5, 1.0, 1.0, 1.0),
    "depthwise": (9.0, 2.0, 1.5, 1.0, 1.0),
    "product": (1.0, 1.0, 1.0, 1.0, 1.0),
}
MULTIPLES = {"convolution": 8, "depthwise": 16, "product": 1}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Return what was measured so far, by kind and threads; the cache is empty at first."""
    found = []
    monkeypatch.setenv("PBCOMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr(
        machine_probes, "_costs", lambda kind, threads: found.append((kind, threads)) or COSTS[kind]
    )
    return found


def test_a_machine_is_measured_once_for_its_threads(measured):
    assert len(PROBE_WIDTHS) == 5
    assert machine_multiples(KINDS, 1) == MULTIPLES
    assert machine_multiples(["depthwise"], 1) == {"depthwise": 16}
    assert measured == [(kind, 1) for kind in KINDS]
    machine_multiples(KINDS, 2)
    assert measured[3:] == [(kind, 2) for kind in KINDS]


def test_another_processor_or_runtime_is_measured_itself(measured, monkeypatch):
    machine_multiples(KINDS, 1)
    monkeypatch.setattr(machine_probes, "_processor", lambda: "another one")
    machine_multiples(KINDS, 1)
    monkeypatch.setattr(machine_probes, "version", lambda: "99.0")
    machine_multiples(KINDS, 1)
    assert len(measured) == 9


def change(**entries):
    return lambda data: json.dumps(data | entries)


DAMAGE = {
    "cut off": lambda data: json.dumps(data)[:-9],
    "empty": lambda data: "",
    "another kind": change(kind="x"),
    "newer": change(version=99),
    "no costs": lambda data: json.dumps({k: v for k, v in data.items() if k != "costs"}),
    "a kind is missing": lambda data: json.dumps(
        data | {"costs": {"product": data["costs"]["product"]}}
    ),
    "too few widths": lambda data: json.dumps(
        data | {"costs": {kind: own[:2] for kind, own in data["costs"].items()}}
    ),
    "no time": change(costs={kind: [0.0] * 5 for kind in KINDS}),
    "words": change(costs=dict.fromkeys(KINDS, "fast")),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_measured_again(name, measured, tmp_path):
    machine_multiples(KINDS, 1)
    (path,) = tmp_path.iterdir()
    whole = path.read_text()
    path.write_text(DAMAGE[name](json.loads(whole)))
    assert machine_multiples(KINDS, 1) == MULTIPLES
    assert len(measured) == 6
    assert path.read_text() == whole


def test_a_cache_that_cannot_be_written_costs_only_time(measured, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("PBCOMPRESS_CACHE", str(blocked))
    assert machine_multiples(KINDS, 1) == machine_multiples(KINDS, 1) == MULTIPLES
    assert len(measured) == 6
