"""Text is text: whatever a name holds, Markdown, YAML and HTML show it, and nothing runs."""

import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pbcompress as pb
from pbcompress.comparison.intervals import Estimate
from pbcompress.comparison.pictures import Point, accuracy_picture, layer_picture
from pbcompress.core.markdown import (
    as_code,
    as_document,
    as_paragraphs,
    as_text,
    without_controls,
)
from pbcompress.core.text_tables import render_markdown, render_text
from pbcompress.packaging.model_card import model_card
from pbcompress.report.writing import to_html, to_markdown

NASTY = (
    "<img src=z onerror=alert(1)>", "</td><script>document.title='ran'</script>",
    "[x](javascript:alert(1))", "![x](http://example.org/a.png)", "a|b", "`x`<b>",
    "**b** _c_ ~~d~~",
    "a\n\n# Heading", "x\n---\nlicense: evil", "# h", "- item", "1. item", "> quote", "&lt;b&gt;",
    "&#60;script>", "\\<b>", "$a$ $\\frac", "http://example.org", "a\x1b[2Jb", "\u202eabc", "<!-- ",
    "<svg/onload=alert(1)>", "'\"><iframe srcdoc=1>", "{{ 7*7 }}", "a\r\nb", "=====", "| --- |",
)  # fmt: skip
LINES = st.text() | st.sampled_from(NASTY) | st.text("<>&|`*_[]()#-=\\\n ~!$:/.1ab", max_size=12)


def test_there_is_enough_that_is_nasty() -> None:
    assert len(NASTY) == 27


@given(LINES)
def test_no_html_and_no_second_line_is_left(text: str) -> None:
    for shown in (as_text(text), as_text(text, in_table=True)):
        assert "<" not in shown
        assert "\n" not in shown
        assert not re.search(r"(?<!\\)(?:\\\\)*[`|*\[\]]", re.sub(r"\\[^\\]", "", shown))


@given(st.lists(LINES, min_size=1, max_size=3), st.integers(0, 2))
def test_a_table_keeps_its_rows_and_columns(cells: list[str], code: int) -> None:
    row = [as_code(cell) if i == code else cell for i, cell in enumerate(cells)]
    lines = render_markdown([["head"] * len(row), row, ["1"] * len(row)]).split("\n")
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines if line} <= {
        len(row) + 1,
        2,  # a column without any text is left out
        *range(2, len(row) + 2),
    }


@given(st.text())
def test_a_line_has_no_control_characters(text: str) -> None:
    line = without_controls(text)
    assert not CONTROLS.search(line)
    assert "\n" not in line


MARKS = "\x1b]0;x\x07\x1b[2J\x00\x08\x7f\x85\x9b\u202e\u2066\u200f\u061c\u2028\udc80"
CONTROLS = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """All that people are shown of a run, with marks in all that a user can name, by place."""
    network = nn.Sequential()
    for number in range(2):
        network.add_module(f"{MARKS}{number}", nn.Linear(8, 8))
        network.add_module(f"act{number}{MARKS}", nn.ReLU())
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    batches = [(x, torch.zeros(20, dtype=torch.long))]
    config = pb.CompressConfig(
        dendrites=pb.DendriteConfig(max_sets=1),
        recovery=pb.RecoveryConfig(epochs=2, dendrite_epochs=1),
        deploy=False,
    )
    result = pb.compress(
        network, 0.8, data=pb.Data(train=batches, val=batches), task=pb.Task(name=f"m{MARKS}"),
        config=config, progress=False,
    )  # fmt: skip
    facts, history = replace(result.facts(), torch=MARKS, deployment=MARKS), result.history
    card = pb.CardConfig(
        license="mit", classes=(MARKS, "b"), intended_use=f"a\n\n{MARKS}", preprocessing=MARKS
    )
    side = {"type": "float32", "shape": [MARKS, 8], "name": MARKS}
    models = {MARKS: {"bytes": 1, "max_difference": 0.0, "same_top1": 1.0}}
    packed = {
        "name": "net", "classes": [MARKS, "b"], "inputs": [side], "outputs": [side], "samples": 1,
        "models": models,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("shown")
    layers = {name: (layer, layer) for name, layer in facts.before.cost.by_layer.items()}
    layer_picture(layers, folder / "layers.svg")
    score = Estimate(0.5, 20, 0.4, 0.6, MARKS)
    accuracy_picture([Point(MARKS, "before", 9, score)], MARKS, folder / "points.svg")
    return {
        "page": to_html(facts, history),
        "report": to_markdown(facts, history),
        "card": model_card(facts, 1.0, MARKS, packed, card),
        "layers": (folder / "layers.svg").read_text(encoding="utf-8"),
        "points": (folder / "points.svg").read_text(encoding="utf-8"),
        "plan": as_document(str(result.plan)),
        "table": render_text([("a", MARKS), (MARKS, "1")]),
        "markdown": render_markdown([("a", MARKS), (MARKS, "1")]),
    }


PLACES = ("page", "report", "card", "layers", "points", "plan", "table", "markdown")


@pytest.mark.parametrize("place", PLACES)
def test_no_place_shows_a_mark_that_commands(place: str, shown: dict[str, str]) -> None:
    assert set(shown) == set(PLACES)
    text = shown[place]
    assert "0;x\ufffd" in text
    assert not CONTROLS.search(text)
    text.encode()
    if place in ("layers", "points"):
        ElementTree.fromstring(text)  # XML has no word for an escape


@pytest.mark.parametrize("text", NASTY)
def test_a_renderer_shows_the_text(text: str) -> None:
    """By an implementation of CommonMark that is not ours."""
    rendering = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
    rendering.enable(["table", "strikethrough"])
    words = " ".join(without_controls(text).split())
    html = rendering.render(f"begin {as_text(text)} end")
    assert " ".join(unescape(re.sub(r"</?p>", "", html)).split()) == f"begin {words} end"
    for source in (as_text(text, in_table=True), as_code(text)):
        table = rendering.render(f"| a | b |\n| - | - |\n| {source} | c |")
        cells = [unescape(c) for c in re.findall(r"<td>(?:<code>)?(.*?)(?:</code>)?</td>", table)]
        assert [" ".join(cell.split()) for cell in cells] == [words, "c"]
    alone = rendering.render(as_paragraphs(text))
    assert set(re.findall(r"<(\w+)", alone)) == {"p"}


def is_name(text: str) -> bool:
    """Tell whether torch takes a text as the name of a layer, and can export it."""
    return text.isprintable() and not set(text) & set('."\\')


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its report and its package, with nasty names wherever a user can put one."""
    folder = tmp_path_factory.mktemp("nasty")
    network = nn.Sequential()
    for number, name in enumerate([n for n in NASTY if is_name(n)][:8]):
        network.add_module(name, nn.Linear(8, 8))
        network.add_module(f"act{number}", nn.ReLU())
    x = torch.randn(20, 8)
    batches = [(x, torch.zeros(20, dtype=torch.long))]
    task = pb.Task(name=NASTY[0])
    config = pb.CompressConfig(
        dendrites=pb.DendriteConfig(max_sets=0), recovery=pb.RecoveryConfig(epochs=1)
    )
    data = pb.Data(train=batches, val=batches)
    result = pb.compress(
        network, 0.8, data=data, task=task, config=config, run_dir=folder / "run", progress=False
    )
    card = pb.CardConfig(
        license="mit", classes=NASTY[:8], intended_use="\n".join(NASTY), preprocessing=NASTY[1]
    )
    result.package(folder / "net", card, name="net")
    return folder


@pytest.mark.slow
def test_reports_and_card_of_a_nasty_run_hold_no_markup(written: Path) -> None:
    for file in (written / "run" / "report.md", written / "net" / "README.md"):
        text = file.read_text(encoding="utf-8")
        text = text.partition("\n---\n")[2] or text
        for needle in ("<img", "<script", "<svg", "<iframe", "<!--", "\n# Heading", "\nlicense:"):
            assert needle not in text, (file, needle)
    html = (written / "run" / "report.html").read_text(encoding="utf-8")
    assert "<img" not in html
    assert "<script" not in html
    assert "<iframe" not in html


@pytest.mark.slow
def test_the_head_of_the_card_is_yaml_that_says_the_name(written: Path) -> None:
    yaml = pytest.importorskip("yaml")
    text = (written / "net" / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "mit"
    assert head["metrics"] == [NASTY[0]]


FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run/report.html", "run/report.md", "net/README.md"])
def test_nothing_runs_in_a_browser(name: str, written: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium, and there is no program chromium on the path")
    text = (written / name).read_text(encoding="utf-8")
    if name.endswith(".md"):
        rendering = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
        text = rendering.enable(["table", "strikethrough"]).render(text)
    watched = "<script>window.ran = 0; window.alert = () => { window.ran++ }</script>"
    told = "<script>document.body.dataset.ran = window.ran + document.images.length</script>"
    if name.endswith(".html"):
        text = re.sub(r"<meta[^>]*Content-Security-Policy[^>]*>", "", text)  # nothing else may help
    page = tmp_path / "page.html"
    page.write_text(f"{watched}{text}{told}", encoding="utf-8")
    command = [chromium, *FLAGS, "--virtual-time-budget=2000", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert 'data-ran="0"' in done.stdout
    assert done.stdout.count("<script") == 2
    control = tmp_path / "control.html"
    control.write_text(f"{watched}{NASTY[0]}{told}<p>", encoding="utf-8")
    done = subprocess.run(
        [*command[:-1], control.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert 'data-ran="1"' in done.stdout  # the image at least: the page would tell
