"""The report: whole, honest, self-contained, and never in the way of the result."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pbcompress.core.text_tables import render_markdown, render_text
from pbcompress.costs.measured import LayerCost
from pbcompress.errors import CompressionError
from pbcompress.onnx_files.session import Latency
from pbcompress.report.tables import before_after, dendrite_account, layer_widths
from pbcompress.report.writing import to_html, to_json, to_markdown, write_report
from pbcompress.runs.contenders import Score
from pbcompress.runs.facts import Metric, NetworkFacts
from pbcompress.training.history import History, Stage
from tests.support.run_facts import (
    contender,
    cost,
    costing,
    make_deployment,
    make_facts,
    make_history,
    no_data,
    scored,
)


def layers(*widths):
    return {f"block.{i}": LayerCost("Conv2d", w * 9, w * 900, w) for i, w in enumerate(widths)}


def costs(params, *widths):
    return {"params": params, "flops": params * 100, "by_layer": layers(*widths)}


def score(val, test):
    return Score(val, 300, test, 400)


def made_facts(**changes):
    facts = make_facts(
        note="Validation chose width alone over the network with dendrites.",
        before=NetworkFacts(cost=cost({}, **costs(10321, 16, 32, 10)), score=score(0.9301, 0.9207)),
        after=WIDE,
        other=GROWN,
        deployment=make_deployment(
            bytes_before=41234,
            bytes_after=12345,
            latency_before=Latency(median=0.4321, p95=0.6, rounds=200, ratio=1.0),
            latency_after=Latency(median=0.2105, p95=0.3, rounds=200, ratio=2.05),
        ),
        left_alone={"block.2": "its width is the network's output"},
    )
    return replace(facts, **changes)


WIDE = costing(contender(Stage.WIDTH, 0, {}, score(0.9211, 0.9105)), **costs(2571, 8, 15, 10))
GROWN = costing(contender(Stage.DENDRITES, 1, {}, score(0.9177, 0.9099)), **costs(2583, 7, 13, 10))
WHOLE = made_facts()
LAYERS_60 = {f"stage.{i}.with.a.long.name.conv": layers(64)["block.0"] for i in range(60)}
CASES = {
    "whole": WHOLE,
    "dendrites won": made_facts(
        after=scored(GROWN, val=0.93, test=0.92), other=scored(WIDE, val=0.92, test=0.91)
    ),
    "one network": made_facts(other=None),
    "no data": no_data(WHOLE),
    "no test split": made_facts(
        before=scored(WHOLE.before, val=0.9, test=None), after=scored(WIDE, val=0.9, test=None)
    ),
    "not exported": made_facts(deployment=None),
    "could not be exported": made_facts(deployment="torch.export could not <follow> & stopped"),
    "lower is better": made_facts(metric=Metric("mse", higher_is_better=False)),
    "negative metric": made_facts(
        before=scored(WHOLE.before, val=-3.0, test=-3.1), after=scored(WIDE, val=-2.0, test=-2.5)
    ),
    "sixty layers": made_facts(
        before=costing(WHOLE.before, params=9**6, flops=9**6 * 100, by_layer=LAYERS_60)
    ),
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

    assert facts.note in to_markdown(facts, history)
    assert json.loads(to_json(facts, history))["history"] == history.records


def test_the_page_holds_every_number_of_the_table():
    text = "".join(Page(to_html(WHOLE, make_history())).text)
    for number in (
        "10,321", "2,571", "41,234", "12,345", "0.432", "0.210", "2.05", "0.9301", "0.9211",
        "0.9207", "0.9105", "n=300", "n=400", "2,583", "0.9177",
    ):  # fmt: skip
        assert number in text, number


def test_same_facts_same_bytes():
    assert to_html(WHOLE, make_history()) == to_html(WHOLE, make_history())


def test_names_are_escaped():
    named = {"a<b&c": LayerCost("Conv2d", 1, 1, 4)}
    before, after = (costing(network, by_layer=named) for network in (WHOLE.before, WIDE))
    facts = made_facts(note="<b>& co</b>", before=before, after=after)

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
    rows = layer_widths(WHOLE)
    assert [row[2:4] for row in rows[1:]] == [("16", "8"), ("32", "15"), ("10", "10")]
    assert rows[3][-1] == "its width is the network's output"


def test_tables_line_up_in_text_and_markdown():
    table = before_after(WHOLE)
    lines = render_text(table).splitlines()
    assert len({len(line) for line in lines[:2]}) == 1
    assert render_markdown(table).count("\n") == len(table)


@pytest.mark.parametrize("ending", ["html", "md", "json"])
def test_the_ending_names_the_form(ending, tmp_path):
    write_report(tmp_path / f"r.{ending}", WHOLE, make_history())
    assert (tmp_path / f"r.{ending}").stat().st_size > 500


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(CompressionError, match=r"\.html, \.md or \.json"):
        write_report(tmp_path / "r.pdf", WHOLE, make_history())


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_without_its_packages_html_is_a_clear_error_or_passed_over(package, tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(CompressionError, match=r"pbcompress\[report\]"):
        write_report(tmp_path / "r.html", WHOLE, make_history())
    write_report(tmp_path / "r.html", WHOLE, make_history(), optional=True)

    assert not list(tmp_path.iterdir())
