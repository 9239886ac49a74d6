"""The study of latency bounds: its tables come from lines alone, and it starts in small."""

import pytest
import torch

from scripts.lines import read_lines
from scripts.planner.networks import Entry
from scripts.speed import bounds, by_hand
from tests.scripts.test_smoke import small_cnn

LINES = [
    {
        "name": "a", "question": "bound", "share": 0.5, "allocation": "uniform", "params": 0.48,
        "flops": 0.41, "of_bound": 0.987, "predicted": 1.01, "seconds": 8.04, "plain_plans": 17.2,
        "round_to": 16,
    },
    {
        "name": "a", "question": "hand", "share": 0.5, "allocation": "uniform", "params": 0.46,
        "flops": 0.4, "of_bound": 0.97,
    },
    *(
        {
            "name": "a", "question": "expected", "share": 0.0, "allocation": "", "arm": "x",
            "expected": expected, "speed_up": 2.0, "flop_ratio": 2.1,
        }
        for expected in (2.0, 2.2, 3.0)
    ),
]  # fmt: skip


def _trained(arm, seed, test):
    return {
        "question": "trained", "task": "digits", "arm": arm, "seed": seed, "steps": 90,
        "of_bound": 0.98, "params": 0.4, "flops": 0.45, "test": test,
    }  # fmt: skip


def test_accuracies_at_one_latency_are_paired_by_seed():
    lines = [_trained("bound", seed, 0.9 + seed / 100) for seed in range(3)]
    lines += [_trained("hand", seed, 0.88 + seed / 100) for seed in range(3)]
    row = "| digits | 3 | 0.980, 40.0%, 45.0%, 91.00 | 0.980, 40.0%, 45.0%, 89.00 | +2.00 ± 0.00"
    assert row in bounds.tables(lines)
    lines[0]["steps"] = 91
    with pytest.raises(ValueError, match="cannot be compared"):
        bounds.tables(lines)


def test_the_tables_say_what_the_lines_say():
    page = bounds.tables(LINES)
    assert "| a | 50% | bound, uniform | 0.987 | 1.010 | 48.0% | 41.0% | 17.2 | 8.0 |" in page
    assert "| a | 50% | by hand, multiples of 8 | 0.970 | - | 46.0% | 40.0% | - | - |" in page
    assert "| a | x | 2.10 | 3.00 | 2.00 | 1.50 |" in page
    assert "3 plans: off by 10.0% in the median" in page
    assert "50.0% for the worst; 67% are within 20 %." in page


def large_images(batch):
    return (torch.randn(batch, 1, 96, 96),)


@pytest.mark.slow
def test_it_starts_in_small(tmp_path, monkeypatch):
    entry = Entry("small_cnn", small_cnn, large_images)  # whose time is not calls alone
    monkeypatch.setattr(bounds, "all_networks", lambda: {"small_cnn": entry})
    monkeypatch.setattr(bounds, "BOUNDED", ("small_cnn",))
    monkeypatch.setattr(bounds, "SHARES", (0.6,))
    monkeypatch.setattr(by_hand, "BISECTIONS", 2)
    monkeypatch.setattr(bounds, "EXPECTED", (("uniform", 0.5, 8),))
    path = tmp_path / "lines.jsonl"
    bounds.main([str(path)])
    lines = read_lines(path)
    assert [line["question"] for line in lines] == ["bound", "bound", "hand", "expected"]
    bounds.main([str(path)])  # what is there is not run again
    assert read_lines(path) == lines
    assert bounds.tables(lines).count("| small_cnn |") == 4
