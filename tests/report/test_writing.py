"""The report: whole, honest, self-contained, and never in the way of the result."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest

from pbcompress.core.text_tables import render_markdown, render_text
from pbcompress.errors import CompressionError
from pbcompress.report.tables import before_after, dendrite_account, layer_widths
from pbcompress.report.writing import to_html, to_json, to_markdown, write_report
from pbcompress.training.history import History


def layers(widths):
    return {
        f"block.{i}": {"kind": "Conv2d", "params": w * 9, "flops": w * 900, "width": w}
        for i, w in enumerate(widths)
    }


def network(params, widths, score):
    return {
        "params": params,
        "flops": params * 100,
        "uncounted_ops": {"aten::add": 2},
        "input_shapes": {"0": [1, 3, 8, 8]},
        "layers": layers(widths),
        "score": score,
    }


def score(val, test):
    return {"val": val, "val_samples": 300, "test": test, "test_samples": 400}


def arm(name, sets, **rest):
    extra = {"name": name, "sets": sets, "dendrite_params": 40 * sets, "steps": 90, "epochs": 5}
    return {**extra, **network(**rest)}


def make_facts(**changes):
    shipped = {
        "bytes_before": 41234,
        "bytes_after": 12345,
        "latency_before": {"median": 0.4321, "p95": 0.6, "rounds": 200, "ratio": 1.0},
        "latency_after": {"median": 0.2105, "p95": 0.3, "rounds": 200, "ratio": 2.05},
        "proof": {
            "path": "model.onnx",
            "opset": 20,
            "file_bytes": 12345,
            "max_difference": 3.4e-6,
            "max_relative": 1.2e-7,
            "batch_sizes": [1, 2, 5],
            "checks": 12,
            "input_names": ["x"],
            "output_names": ["y"],
            "operations": {"Conv": 3},
        },
    }
    facts = {
        "pbcompress": "0.1.0",
        "torch": "2.13.0",
        "target_params": 2600,
        "seed": 7,
        "note": "Validation chose width alone over the network with dendrites.",
        "fingerprint": "f" * 64,
        "metric": {"name": "accuracy", "higher_is_better": True},
        "config": {"version": 1, "deploy": True},
        "before": network(10321, (16, 32, 10), score(0.9301, 0.9207)),
        "after": arm("width", 0, params=2571, widths=(8, 15, 10), score=score(0.9211, 0.9105)),
        "other": arm("dendrites", 1, params=2583, widths=(7, 13, 10), score=score(0.9177, 0.9099)),
        "deployment": shipped,
        "left_alone": {"block.2": "its width is the network's output"},
    }
    return {**facts, **changes}


def make_history():
    records = []
    for stage in ("dendrites", "width"):
        for phase, kind in enumerate(("neuron", "dendrite", "neuron")):
            for epoch in range(3):
                record = {
                    "stage": stage,
                    "phase": phase,
                    "kind": kind if stage == "dendrites" else "neuron",
                    "epoch": epoch,
                    "sets": 0,
                    "loss": 0.5,
                    "metric": 0.8 + 0.01 * (phase * 3 + epoch),
                    "steps": 10,
                    "lr": 0.001,
                    "seconds": 0.1,
                }
                if record["kind"] == "dendrite":
                    record |= {"correlation": 0.02 + 0.01 * epoch, "improved": 3}
                records.append(record)
    return History(records)


MINUS = {"name": "mse", "higher_is_better": False}
LAYERS_60 = {
    f"stage.{i}.with.a.long.name.conv": v for i, v in enumerate(layers([64] * 60).values())
}
CASES = {
    "whole": make_facts(),
    "dendrites won": make_facts(
        after=arm("dendrites", 1, params=2583, widths=(7, 13, 10), score=score(0.93, 0.92)),
        other=arm("width", 0, params=2571, widths=(8, 15, 10), score=score(0.92, 0.91)),
    ),
    "one network": make_facts(other=None),
    "no data": make_facts(
        before=network(10321, (16, 32, 10), None),
        after=arm("width", 0, params=2571, widths=(8, 15, 10), score=None),
        other=None,
    ),
    "no test split": make_facts(
        before=network(10321, (16, 32, 10), score(0.9, None)),
        after=arm("width", 0, params=2571, widths=(8, 15, 10), score=score(0.9, None)),
    ),
    "not exported": make_facts(deployment=None),
    "could not be exported": make_facts(deployment="torch.export could not <follow> & stopped"),
    "lower is better": make_facts(metric=MINUS),
    "negative metric": make_facts(
        before=network(10321, (16, 32, 10), score(-3.0, -3.1)),
        after=arm("width", 0, params=2571, widths=(8, 15, 10), score=score(-2.0, -2.5)),
    ),
    "sixty layers": make_facts(before=network(9**6, (1,), score(0.9, 0.9)) | {"layers": LAYERS_60}),
}


class Page(HTMLParser):
    """Collects tags, and asserts that they are closed in order."""

    VOID = frozenset(("meta", "link", "br", "hr", "img", "input", "col", "wbr"))

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.references, self.text, self.tags = [], [], [], set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("history", [make_history(), History()], ids=["history", "no history"])
@pytest.mark.parametrize("name", CASES)
def test_every_case_is_a_well_formed_self_contained_page(name, history):
    assert len(CASES) == 10
    text = to_html(CASES[name], history)

    page = Page(text)

    assert page.open == []
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert not re.search(r"@import|url\((?!#|['\"]?#)", text)
    assert "script" not in page.tags
    assert "prefers-color-scheme" in text
    assert "@media print" in text


@pytest.mark.parametrize("name", CASES)
def test_every_case_has_markdown_and_json(name):
    facts, history = CASES[name], make_history()

    assert facts["note"] in to_markdown(facts, history)
    assert json.loads(to_json(facts, history))["history"] == history.records


def test_the_page_holds_every_number_of_the_table():
    text = "".join(Page(to_html(make_facts(), make_history())).text)
    for number in (
        "10,321", "2,571", "41,234", "12,345", "0.432", "0.210", "2.05", "0.9301", "0.9211",
        "0.9207", "0.9105", "n=300", "n=400", "2,583", "0.9177",
    ):  # fmt: skip
        assert number in text, number


def test_same_facts_same_bytes():
    assert to_html(make_facts(), make_history()) == to_html(make_facts(), make_history())


def test_names_are_escaped():
    facts = make_facts(note="<b>& co</b>")
    facts["before"]["layers"] = {"a<b&c": {"kind": "Conv2d", "params": 1, "flops": 1, "width": 4}}
    facts["after"]["layers"] = facts["before"]["layers"]

    text = to_html(facts, make_history())

    assert "<b>& co" not in text
    assert "a&lt;b&amp;c" in text


def test_the_account_puts_dendrites_first_whoever_won():
    for name in ("whole", "dendrites won"):
        account = dendrite_account(CASES[name])
        assert account[0] == ("", "with dendrites", "width alone")
        chosen = dict(zip(account[0][1:], account[1][1:], strict=True))
        assert chosen["with dendrites"] == ("yes" if name == "dendrites won" else "no")
    assert dendrite_account(CASES["one network"]) is None


def test_widths_name_what_was_left_alone():
    rows = layer_widths(make_facts())
    assert [row[2:4] for row in rows[1:]] == [("16", "8"), ("32", "15"), ("10", "10")]
    assert rows[3][-1] == "its width is the network's output"


def test_tables_line_up_in_text_and_markdown():
    table = before_after(make_facts())
    lines = render_text(table).splitlines()
    assert len({len(line) for line in lines[:2]}) == 1
    assert render_markdown(table).count("\n") == len(table)


@pytest.mark.parametrize("ending", ["html", "md", "json"])
def test_the_ending_names_the_form(ending, tmp_path):
    write_report(tmp_path / f"r.{ending}", make_facts(), make_history())
    assert (tmp_path / f"r.{ending}").stat().st_size > 500


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(CompressionError, match=r"\.html, \.md or \.json"):
        write_report(tmp_path / "r.pdf", make_facts(), make_history())


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_without_its_packages_html_is_a_clear_error_or_passed_over(package, tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(CompressionError, match=r"pbcompress\[report\]"):
        write_report(tmp_path / "r.html", make_facts(), make_history())
    write_report(tmp_path / "r.html", make_facts(), make_history(), optional=True)

    assert not list(tmp_path.iterdir())
