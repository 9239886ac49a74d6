"""What the page says, in every case; `test_writing` holds the files and their forms."""

import builtins
import copy
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pbcompress.comparison.intervals import Estimate
from pbcompress.core.json_documents import parse
from pbcompress.core.markdown import as_text
from pbcompress.core.records import from_data
from pbcompress.core.text_tables import render_markdown, render_text
from pbcompress.errors import CompressionError
from pbcompress.onnx_files.session import Latency
from pbcompress.report import page, tables
from pbcompress.report.charts import metric_range
from pbcompress.report.dendrite_phases import candidates
from pbcompress.report.hero import MINUS, TIMES
from pbcompress.report.scores import paired_sentence
from pbcompress.report.writing import (
    KIND,
    VERSION,
    deployment_sentence,
    to_html,
    to_json,
    to_markdown,
    write_report,
)
from pbcompress.runs.facts import RunFacts
from pbcompress.training.history import History
from tests.support.run_facts import (
    NASTY,
    VARIANTS,
    costing,
    exact_shares,
    make_deployment,
    make_facts,
    make_history,
    make_variant,
    scored,
)

Run = tuple[RunFacts, History]
VOID = {"br", "hr", "img", "input", "link", "meta", "wbr"}


class Page(HTMLParser):
    """Tags and text of a page; the parse fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def having(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def whole() -> Run:
    return make_facts(), make_history()


# --- every page -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=VARIANTS)
def rendered(request: pytest.FixtureRequest) -> str:
    return to_html(*make_variant(request.param))


def test_html_is_well_formed(rendered: str) -> None:
    assert len(Page(rendered).tags) > 50


def test_html_asks_for_nothing_from_elsewhere(rendered: str) -> None:
    assert not re.search(r"https?://|//[a-z]|url\((?!#)|@import", rendered)
    references = [
        value
        for _, attributes in Page(rendered).tags
        for key, value in attributes.items()
        if key in ("src", "href", "xlink:href", "srcset", "action", "data")
    ]
    assert all(value is not None and value.startswith(("#", "data:,")) for value in references)


def test_html_has_no_script(rendered: str) -> None:
    tags = Page(rendered).tags
    assert not [
        1 for tag, attributes in tags if tag == "script" or any(map(is_handler, attributes))
    ]


def is_handler(attribute: str) -> bool:
    return attribute.startswith("on")


def test_ids_are_unique_and_references_lead_somewhere(rendered: str) -> None:
    tags = Page(rendered).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 5
    used = re.findall(r'(?:url\(|href=")#([^)"]+)', rendered)
    used += [a["aria-labelledby"] for _, a in tags if "aria-labelledby" in a]
    assert set(used) <= set(ids)


def test_every_header_cell_has_a_scope(rendered: str) -> None:
    headers = Page(rendered).having("th")
    assert headers
    assert all(attributes.get("scope") in ("row", "col") for attributes in headers)


def test_every_image_says_what_it_shows_or_is_hidden(rendered: str) -> None:
    for drawing in re.findall(r"<svg[^>]*>(?:<title)?", rendered):
        assert 'aria-hidden="true"' in drawing or ('role="img"' in drawing and "<title" in drawing)


def test_all_colours_follow_the_scheme(rendered: str) -> None:
    body = rendered.split("</style>")[1]
    assert not re.search(r"(fill|stroke|color): ?#", body)


def test_every_number_of_the_tables_is_on_the_page(whole: Run) -> None:
    text = Page(to_html(*whole)).text
    account = tables.dendrite_account(whole[0])
    assert account is not None
    for table in (tables.before_after(whole[0]), tables.layer_widths(whole[0]), account):
        assert [cell for row in table for cell in row if cell not in text] == []


def test_facts_read_back_from_json_give_the_same_page(whole: Run) -> None:
    data = parse(to_json(*whole), KIND, VERSION, "The report", by_hand=True)
    facts, history = from_data(RunFacts, data["facts"], "The report"), History(data["history"])
    assert (facts, history) == whole
    assert to_html(facts, history) == to_html(*whole)


def test_facts_stay_as_they_were(whole: Run) -> None:
    former = copy.deepcopy(whole)
    to_html(*whole)
    assert whole == former


def test_the_users_matplotlib_settings_neither_matter_nor_change(
    whole: Run,
) -> None:
    import matplotlib as mpl

    expected = to_html(*whole)
    with mpl.rc_context({"lines.linewidth": 9, "axes.grid": True, "font.size": 30}):
        former = dict(mpl.rcParams)
        assert to_html(*whole) == expected
        assert dict(mpl.rcParams) == former


def test_names_are_escaped() -> None:
    facts, history = make_variant("nasty names")
    html = to_html(facts, history)
    assert NASTY not in html
    assert Page(html).text.count(NASTY) > 5


# --- what the page says ---------------------------------------------------------------------------


def page_text(variant: str) -> str:
    return Page(to_html(*make_variant(variant))).text


def test_headline_names_both_sizes_and_the_factor() -> None:
    assert f"2,794 → 1,477 parameters 1.9{TIMES} smaller, 1.88{TIMES} as fast" in page_text("whole")


def test_note_is_on_the_page(whole: Run) -> None:
    assert whole[0].note in page_text("whole")


def test_metric_comes_with_its_number_of_samples() -> None:
    words = f"0.9321 {MINUS}0.0079 (11 of 1,400 samples) was 0.9400, n = 1,400"
    assert words in page_text("whole")


def test_without_a_test_split_the_validation_metric_is_named_as_such() -> None:
    text = page_text("no test split")
    assert "accuracy, validation 0.9442" in text
    assert "flatters the result" in text


def test_without_data_the_page_says_that_nothing_was_trained() -> None:
    assert "Nothing was trained" in page_text("no data")


def test_data_without_epochs_are_told_apart_from_no_data(whole: Run) -> None:
    text = Page(to_html(whole[0], History())).text
    assert "No epochs were recorded" in text
    assert "Nothing was trained" not in text


def test_one_epoch_makes_a_chart(whole: Run) -> None:
    assert 'class="chart wide"' in to_html(whole[0], History(whole[1].records[-1:]))


def test_reason_of_a_failed_export_is_on_the_page() -> None:
    assert NASTY in page_text("not exportable")


def test_layer_that_kept_its_width_says_why() -> None:
    assert "kept: its width is the network's output" in page_text("whole")


def test_dendrites_are_marked_at_their_layer() -> None:
    assert "conv + 1 dendrite set" in page_text("whole")


def test_slower_comes_first_and_its_bar_shows_more_time_than_before(whole: Run) -> None:
    slow = Latency(median=0.3782, p95=0.4, rounds=200, ratio=0.62)
    html = to_html(replace(whole[0], deployment=make_deployment(latency_after=slow)), whole[1])
    text = Page(html).text
    assert text.startswith(f"2,794 → 1,477 parameters, 0.62{TIMES} as fast: slower")  # the title
    warning = "SLOWER than the original: measured 0.62 times as fast"
    assert html.index(warning) < html.index("<h1")
    assert f"0.62{TIMES} slower: it takes 1.61{TIMES} as long" in text
    assert "Hatched is worse than the original." in text
    card = html.split(">Speed<")[1].split("</li>")[0]
    assert '<rect class="now bad" width="100.00%"' in card  # all of the track, which is longer
    assert 'class="mark" x1="62.00%"' in card  # where the original's time ends
    assert 'class="detail bad"' in card


def test_faster_has_a_bar_of_the_time_that_is_left(whole: Run) -> None:
    html = to_html(*whole)
    card = html.split(">Speed<")[1].split("</li>")[0]
    assert '<rect class="now " width="53.19%"' in card  # 1 / 1.88
    assert "mark" not in card
    assert "bad" not in card
    assert "SLOWER" not in Page(html).text


def test_uncounted_operations_are_listed(whole: Run) -> None:
    facts = replace(whole[0], after=costing(whole[0].after, uncounted_ops={"aten::add": 4}))
    assert f"before, none; after, aten::add {TIMES} 4" in Page(to_html(facts, whole[1])).text


def test_phases_of_dendrites_are_shaded_only_where_there_are_some(
    whole: Run,
) -> None:
    assert "dendrites learn" in Page(to_html(*whole)).text
    assert "dendrites learn" not in Page(to_html(whole[0], whole[1].stage("width"))).text


def test_what_each_candidate_scored_and_brought_is_told() -> None:
    facts, history = make_variant("whole")
    records = [dict(record) for record in history]
    grown = [r for r in records if r["stage"] == "dendrites"]
    after = next(r for r in grown if r["kind"] == "neuron" and r["sets"] == 1)
    after["nodes"] = {"a": [3, 8], "b": [2, 4]}
    entry = candidates(History(records), facts)[0]
    first = [r["metric"] for r in grown if r["phase"] == 0]
    later = [r["metric"] for r in grown if r["phase"] == after["phase"]]
    assert entry["brought"] == f"accuracy {max(first):.4f} → {max(later):.4f}"
    assert entry["nodes"] == "5 of 12 nodes stayed"
    assert entry["scores"] == {"a": [0.01 * i for i in range(11)], "b": [0.1] * 11}
    text = to_html(facts, History(records))
    assert "5 of 12 nodes stayed" in text
    assert text.count('id="scores-') >= 2


def test_correlation_of_each_candidate_is_told() -> None:
    assert "candidate 1, kept: 0.125 → 0.375" in page_text("whole")
    assert "candidate 1, taken out again: 0.125 → 0.375" in page_text("set dropped")


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("whole", "The dendrites won: accuracy 0.9442 on validation (n = 250) against 0.9242"),
        ("lower is better", "The dendrites lost: mean squared error 0.9442"),
        ("set dropped", "No set of dendrites helped on validation"),
        ("one network", "not known"),
        ("no data", "not known"),
    ],
)
def test_verdict_is_honest(variant: str, words: str) -> None:
    assert words in page.verdict(make_variant(variant)[0])


def test_equal_networks_are_no_win(whole: Run) -> None:
    facts = replace(whole[0], other=scored(whole[0].other, val=whole[0].after.score.val))
    assert "neither won nor lost" in page.verdict(facts)


def test_width_alone_without_control_had_no_dendrites(whole: Run) -> None:
    facts = replace(whole[0], after=whole[0].other, other=None)
    assert page.verdict(facts) == "No dendrites were grown."


@pytest.mark.parametrize("variant", ["whole", "set dropped", "many layers"])
def test_rows_of_the_layers_add_up_to_the_network(variant: str) -> None:
    facts, _ = make_variant(variant)
    rows = page.layer_rows(facts)["rows"]
    before, after = facts.before.cost, facts.after.cost
    wholes = [(before.params, after.params), (before.flops, after.flops)]
    for column, (old, new) in enumerate(wholes, start=1):
        cells = [row["cells"][column] for row in rows]
        assert sum(cell["before"] for cell in cells) == old
        assert sum(cell["total"] for cell in cells) == new


def test_bars_stay_within_their_column(whole: Run) -> None:
    cells = [cell for row in page.layer_rows(whole[0])["rows"] for cell in row["cells"] if cell]
    shares = [share for cell in cells for share in cell["shares"].values()]
    assert min(shares) >= 0
    assert max(shares) == 1


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_axis_shows_the_best_and_leaves_out_the_first_epochs(higher_is_better: bool) -> None:
    sign = 1 if higher_is_better else -1
    values = [sign * (0.1 if i < 2 else 0.9 + i / 1000) for i in range(40)]
    low, high = metric_range(values, higher_is_better)
    assert low < values[-1] < high
    assert not low < values[0] < high


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [0.9, 0.1], [-3.0, -3.0]])
def test_axis_of_few_values_holds_them_all(values: list[float]) -> None:
    low, high = metric_range(values, True)
    assert low < min(values) <= max(values) < high


def test_evidence_is_told_in_words_and_numbers() -> None:
    text = page_text("with evidence")
    for words in (
        "model.onnx is not the file that the run wrote",
        "Int8 was not taken, because it failed on accuracy and speed: validation accuracy 0.9440 "
        "in float32 and 0.9250 in int8",
        "1 node stayed in float32; it was calibrated on 256 samples.",
        "Before: fvcore counts 10,176 FLOPs and FlopCounterMode 9,600: batch_norm 576 and 0.",
        "Times and memory are those of the machine that made it: ONNX Runtime, 1 thread",
    ):
        assert words in text, words
    html = to_html(*make_variant("with evidence"))
    for row in (
        ("FLOPs by torch&#39;s counter", "9,600", "5,400", "56.2%"),
        ("weights", "1,444", "1,444"),
        ("batch 32, samples a second", "100,000", "-"),
        ("accuracy in ONNX Runtime (n=1,400)", "0.9321 (0.9177 to 0.9441)", "0.9250"),
    ):
        cells = "</th>" + "".join(f"<td>{cell}</td>" for cell in row[1:])
        assert f">{row[0]}{cells}" in html, row
    assert "After: fvcore" not in text  # they agree


def test_metric_against_size_has_all_networks_and_their_intervals() -> None:
    text = page_text("with evidence")
    for words in (
        "original: 2,794 parameters, 0.9400 (0.9263 to 0.9513)",
        "result, with dendrites: 1,477 parameters, 0.9321 (0.9178 to 0.9442)",
        "control, width alone: 1,489 parameters, 0.9121 (0.8962 to 0.9259)",
        "Test accuracy against the number of parameters; higher is better.",
    ):
        assert words in text, words


def test_the_change_from_the_control_is_told_with_its_interval() -> None:
    facts, history = make_variant("with evidence")
    start = "The test accuracy of the result less that of the control is +0.0200"
    words = (
        f"{start} on the same 1,400 samples, with a 95 % interval of +0.0093 to +0.0307 "
        "(paired bootstrap, 10,000 resamples; exact McNemar test, p = 0.00036)."
    )
    assert words in Page(to_html(facts, history)).text
    assert words in to_markdown(facts, history)
    change = facts.over_control
    assert json.loads(to_json(facts, history))["facts"]["over_control"] == asdict(change)
    wide = replace(facts, over_control=replace(change, low=-0.0015))
    assert "of -0.0015 to +0.0307, so it may be chance (paired" in paired_sentence(wide)
    bare = replace(facts, over_control=Estimate(0.02, 1400, None, None, "no interval: it is slow"))
    assert paired_sentence(bare) == f"{start} (no interval: it is slow)."
    assert paired_sentence(make_facts()) == ""


def test_what_lost_a_trial_is_no_control(whole: Run) -> None:
    after, other = whole[0].after, scored(whole[0].other, test=None, test_samples=0)
    facts = replace(whole[0], after=replace(after, trial=0.9), other=other)
    assert "control, width alone" not in Page(to_html(facts, whole[1])).text


def test_a_metric_that_is_no_share_has_no_interval() -> None:
    text = page_text("lower is better")
    assert "95 %" not in text
    assert "original: 2,794 parameters, 0.9400 result" in text


def test_colour_and_verdict_wait_for_intervals_that_do_not_meet(
    whole: Run,
) -> None:
    facts = exact_shares(whole[0])
    assert "which may be chance: the 95 % intervals meet" in page.verdict(facts)
    assert "On test (n = 1,400) they have 0.9321 against 0.9121." in page.verdict(facts)
    assert 'class="detail bad"' not in to_html(facts, whole[1])
    apart = replace(facts, after=scored(facts.after, val=0.996, test=0.8))
    assert "chance" not in page.verdict(apart)
    assert 'class="detail bad"' in to_html(apart, whole[1])


# --- tables, Markdown, JSON -----------------------------------------------------------------------


def test_text_table_lines_up_numbers_on_the_right(whole: Run) -> None:
    lines = render_text(tables.before_after(whole[0])).splitlines()
    ends = [re.match(r".*?\s[\d,]+(?=\s)", line) for line in lines[2:4]]
    assert all(ends)
    assert len({match.end() for match in ends if match}) == 1


def test_empty_columns_are_left_out(whole: Run) -> None:
    facts = replace(whole[0], after=whole[0].other, left_alone={})
    header = render_text(tables.layer_widths(facts)).splitlines()[0]
    assert header.split() == ["layer", "kind", "before", "after"]


def test_markdown_table_has_as_many_cells_in_every_row(whole: Run) -> None:
    lines = render_markdown(tables.before_after(whole[0])).splitlines()
    assert len(lines) == 8
    assert {line.count("|") for line in lines} == {5}


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "nasty names"])
def test_markdown_tells_all_that_the_table_holds(variant: str) -> None:
    facts, history = make_variant(variant)
    text = to_markdown(facts, history)
    assert facts.note in text
    assert as_text(deployment_sentence(facts)) in text
    cells = itertools.chain.from_iterable(tables.before_after(facts))
    assert [cell for cell in cells if cell not in text] == []


# --- files ----------------------------------------------------------------------------------------


def test_path_that_cannot_be_written_is_a_clear_error(whole: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CompressionError, match="could not be"):
        write_report(tmp_path / "file" / "report.md", *whole)


@pytest.fixture(params=["jinja2", "matplotlib"])
def missing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == request.param:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    return str(request.param)


@pytest.mark.usefixtures("missing")
def test_markdown_needs_no_further_package(whole: Run, tmp_path: Path) -> None:
    write_report(tmp_path / "report.md", *whole)
    assert (tmp_path / "report.md").is_file()


# --- in a browser ---------------------------------------------------------------------------------

BUILD = Path(__file__).parents[2] / "build" / "report"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=2000",
]
SCHEMES = {"dark": 0, "light": 1}
MEASURE = """<!DOCTYPE html><iframe style="width: 360px; height: 800px; border: 0"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const root = frame.contentDocument.documentElement;
  const cut = [...frame.contentDocument.querySelectorAll(".scroll")].filter(
    (part) => part.scrollWidth > part.clientWidth && !part.querySelector(".names")
  );
  document.title = "scroll " + root.scrollWidth + " of " + root.clientWidth + ", cut " + cut.length;
}};
frame.srcdoc = {page};
</script>"""


@pytest.fixture
def browse(tmp_path: Path) -> Iterator[Callable[..., tuple[str, str]]]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium, and there is no program chromium on the path")

    def run(html: str, *flags: str) -> tuple[str, str]:
        file = tmp_path / "page.html"
        file.write_text(html, encoding="utf-8")
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [chromium, *FLAGS, *flags, profile, file.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, done.stderr

    yield run
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [360, 800, 1200])
def test_chromium_shows_the_page_without_a_complaint(
    scheme: str, width: int, browse: Callable[..., tuple[str, str]]
) -> None:
    """The page forbids itself every request, so that one would be a complaint."""
    BUILD.mkdir(parents=True, exist_ok=True)
    picture = BUILD / f"{scheme}-{width}.png"
    _, complaints = browse(
        to_html(*make_variant("with evidence")),
        f"--screenshot={picture}",
        f"--window-size={width},5200",
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
    )
    assert "CONSOLE" not in complaints
    assert picture.stat().st_size > 100 * width


@pytest.mark.slow
def test_a_request_would_be_a_complaint(browse: Callable[..., tuple[str, str]]) -> None:
    html = to_html(*make_variant("whole"))
    strange = html.replace("<main>", '<main><img src="https://example.org/a.png">')
    _, complaints = browse(strange, "--dump-dom")
    assert "CONSOLE" in complaints
    assert "Content Security Policy" in complaints


@pytest.mark.slow
def test_chromium_prints_the_page(browse: Callable[..., tuple[str, str]]) -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    browse(to_html(*make_variant("with evidence")), f"--print-to-pdf={BUILD / 'report.pdf'}")
    content = (BUILD / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert 2 <= content.count(b"/Type /Page\n") <= 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", ["whole", "with evidence", "many layers", "nasty names", "not exportable"]
)
def test_page_does_not_scroll_sideways_on_a_phone(
    variant: str, browse: Callable[..., tuple[str, str]]
) -> None:
    html = json.dumps(to_html(*make_variant(variant))).replace("</", "<\\/")
    dom, _ = browse(MEASURE.format(page=html), "--dump-dom", "--window-size=1000,900")
    found = re.search(r"<title>scroll (\d+) of (\d+), cut (\d+)</title>", dom)
    assert found
    assert found[1] == found[2]
    assert variant == "nasty names" or found[3] == "0"  # no table is wider than its place
