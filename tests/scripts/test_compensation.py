"""The benchmark of compensation starts, in small, and its page is made from its lines."""

from scripts.accuracy import run as accuracy
from scripts.accuracy.grid import TASKS, Task
from scripts.compensation import run, widths
from scripts.compensation.tables import LINES, WIDTHS, page
from scripts.lines import DOCS, read_lines

TINY = Task(
    {"name": "digits", "num_val": 288, "batch_size": 256},
    {"name": "mlp", "in_features": 64, "hidden": (16, 12)},
    epochs=2,
    base_epochs=2,
)


def test_the_page_is_made_from_the_lines():
    lines, others = read_lines(LINES), read_lines(WIDTHS)
    assert lines
    assert others
    assert (DOCS / "compensation.md").read_text() == page(lines, others)


def test_both_start_and_pass_over_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "tiny", TINY)
    made = []

    def bench_of(*args):
        made.append(args)
        return accuracy.Bench(*args)

    choices = ["--tasks", "tiny", "--seeds", "1", "--targets", "0.5"]
    path, other = tmp_path / "lines.jsonl", tmp_path / "widths.jsonl"
    for _ in range(2):
        run.main([str(path), *choices], bench_of)
        widths.main([str(other), *choices], bench_of)
    assert len(made) == 2
    lines, others = read_lines(path), read_lines(other)
    assert [line["part"] for line in lines] == list(run.PARTS)
    assert [(line["widths"], line["channels"]) for line in others] == [
        ("rule", "magnitude"),
        ("rule", "greedy"),
        ("price", "magnitude"),
        ("price", "greedy"),
    ]
    assert others[0]["compensated"] == lines[0]["both"]
    assert all(line["params"] <= lines[0]["params"] for line in others)
    assert "| tiny | 50% | 1 |" in page(lines, others)
