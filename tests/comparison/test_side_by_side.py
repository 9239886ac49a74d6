"""Networks side by side, modules and files mixed: numbers, forms, pictures, and bad input."""

import hashlib
import json
import math
import tempfile
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from pbcompress import (
    Comparison,
    CompressionError,
    Data,
    StateMismatchError,
    Task,
    attach_dendrites_,
    compare,
    export_onnx,
    fuse,
    measure,
)
from pbcompress.cli.main import main
from pbcompress.comparison.intervals import wilson
from pbcompress.comparison.scoring import Parity, paired_change, parity
from pbcompress.onnx_files.contents import measure_onnx, peak_activation_bytes
from pbcompress.training.loop import evaluate
from tests.support import hostile_files as hostile


def network(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def batches(seed: int = 0, count: int = 5):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(20, 6, generator=generator), torch.randint(3, (20,), generator=generator))
        for _ in range(count)
    ]


def make_network() -> nn.Module:
    return network(5)


def make_data() -> Data:
    return Data(train=batches(1, 1), val=batches(2), test=batches(3))


def make_trouble() -> Data:
    raise RuntimeError("no data today")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files, of a wide and a narrow network."""
    folder = tmp_path_factory.mktemp("files")
    for name, width in (("big", 64), ("small", 4)):
        export_onnx(network(width), folder / f"{name}.onnx", torch.randn(4, 6))
    return folder


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch):
    """Leave out the process that measures memory; `whole` and `bare` are made with it."""
    monkeypatch.setattr("pbcompress.comparison.side_by_side.peak_memory", lambda *_: None)


@pytest.fixture(scope="module")
def bare(files) -> Comparison:
    """Two files without data."""
    return compare(files / "big.onnx", files / "small.onnx", torch.randn(2, 6))


@pytest.fixture(scope="module")
def whole(files) -> Comparison:
    """A module against a file, with data and a control."""
    small = files / "small.onnx"
    return compare(network(64), small, torch.randn(4, 6), data=make_data(), control=network(5))


def test_module_against_its_own_file_is_equal(tmp_path):
    model, x = network(8), torch.randn(16, 6)
    export_onnx(model, tmp_path / "small.onnx", x)

    result = compare(model, tmp_path / "small.onnx", x)

    assert result.before.params == result.after.params == 83
    assert result.before.flops == result.after.flops == 72
    assert result.max_difference < 1e-5
    assert (result.agreement, result.compared) == (1, 16)
    assert result.before.flops_by == {"fvcore": 72, "FlopCounterMode": 72, "ONNX graph": 72}
    assert result.after.flops_by == {"ONNX graph": 72}
    assert (result.before.is_file, result.after.is_file) == (False, True)


def test_every_mixture_of_module_and_file(files, whole, bare):
    result = compare(str(files / "small.onnx"), network(64), torch.randn(4, 6))
    assert (result.before.params, result.after.params) == (43, 643)
    assert (result.before.name, result.after.name) == ("small.onnx", "Sequential")
    kinds = [(c.before.is_file, c.after.is_file) for c in (result, whole, bare)]
    assert kinds == [(True, False), (False, True), (True, True)]


def test_every_number_of_a_file_is_derived_from_the_file(whole, files):
    path, side = files / "small.onnx", whole.after
    cost, session = measure_onnx(path), onnxruntime.InferenceSession(path)
    assert (side.params, side.flops, side.file_bytes) == (43, 36, path.stat().st_size)
    assert (cost.params, cost.flops) == (43, 36)
    assert side.layers == cost.by_layer
    assert side.peak_activations == peak_activation_bytes(path)
    inputs, targets = (torch.cat(part).numpy() for part in zip(*batches(3), strict=True))
    (outputs,) = session.run(None, {session.get_inputs()[0].name: inputs})
    hits = int((outputs.argmax(1) == targets).sum())
    assert side.score.value == pytest.approx(hits / 100)
    assert (side.score.low, side.score.high) == wilson(hits, 100)
    wide = network(64).eval()(torch.from_numpy(inputs)).detach().numpy()
    assert whole.max_difference == pytest.approx(np.abs(wide.astype(float) - outputs).max())
    assert whole.agreement == pytest.approx((wide.argmax(1) == outputs.argmax(1)).mean())
    before = int((wide.argmax(1) == targets).sum())
    assert whole.change.value == pytest.approx((hits - before) / 100)
    assert whole.change.low <= whole.change.value <= whole.change.high
    assert (whole.compared, whole.change.samples, whole.metric_name) == (100, 100, "accuracy")


def drawn_change(first, second, metric):
    """Ends of a paired bootstrap by numpy alone: the same samples are drawn for both."""
    generator = np.random.default_rng(5)
    drawn = []
    for _ in range(4000):
        index = generator.integers(len(first), size=len(first))
        drawn.append(metric(second[index]) - metric(first[index]))
    return np.quantile(drawn, [0.025, 0.975])


def test_the_change_from_the_control_is_paired_by_sample(whole, files):
    session = onnxruntime.InferenceSession(files / "small.onnx")
    inputs, targets = (torch.cat(part).numpy() for part in zip(*batches(3), strict=True))
    (after,) = session.run(None, {session.get_inputs()[0].name: inputs})
    control = network(5).eval()(torch.from_numpy(inputs)).detach().numpy()
    right = [output.argmax(1) == targets for output in (control, after)]
    lost, won = (right[0] & ~right[1]).sum(), (~right[0] & right[1]).sum()
    assert min(lost, won) > 5

    found = whole.over_control

    assert found.value == pytest.approx((won - lost) / 100)
    assert (found.low, found.high) == pytest.approx(drawn_change(*right, np.mean), abs=0.011)
    tail = sum(math.comb(int(lost + won), k) for k in range(min(lost, won) + 1))
    assert found.p_value == pytest.approx(min(1, 2 * tail / 2 ** int(lost + won)))
    assert whole.rows()[-3] == ("accuracy, after less control", "", "", "", str(found))
    assert f"after less control: p = {found.p_value:.3g}" in str(whole)


def test_so_is_that_of_any_other_metric(files):
    def error(output, target):
        return (output.argmax(1) - target).abs().float().mean()

    task = Task(metric=error, higher_is_better=False, name="distance")
    sides = network(64), network(4)
    found = compare(
        *sides, torch.randn(2, 6), data=batches(3), task=task, control=network(5)
    ).over_control
    inputs, targets = (torch.cat(part) for part in zip(*batches(3), strict=True))
    gaps = [
        (network(width).eval()(inputs).argmax(1) - targets).abs().double().numpy()
        for width in (5, 4)
    ]
    assert found.value == pytest.approx(gaps[1].mean() - gaps[0].mean(), abs=1e-6)
    assert (found.low, found.high) == pytest.approx(drawn_change(*gaps, np.mean), abs=0.02)
    assert (found.method, found.p_value) == ("paired bootstrap, 1,000 resamples", None)


def test_without_a_control_or_data_nothing_is_said_of_it(files, bare):
    sides = files / "big.onnx", files / "small.onnx"
    assert bare.over_control is None
    found = compare(*sides, torch.randn(2, 6), data=batches())
    assert found.over_control is None
    assert "less control" not in str(found)


def test_what_was_scored_is_paired_or_has_no_interval():
    nets, names, data = (network(5), network(4)), ("a", "b"), batches(3)
    scores = [evaluate(net, data, Task())[0] for net in nets]
    found = paired_change(nets, names, data, Task(), scores)
    assert found.value == pytest.approx(scores[1] - scores[0])
    assert found.low < found.high

    class Shuffled:
        passes = 0

        def __iter__(self):
            self.passes += 1
            order = np.random.default_rng(self.passes).permutation(100)
            inputs, targets = (torch.cat(part) for part in zip(*data, strict=True))
            return iter([(inputs[order], targets[order])])

    for split, word in ((Shuffled(), "not the same each time"), ([], "no batch")):
        other = paired_change(nets, names, split, Task(), scores)
        assert other.value == scores[1] - scores[0]
        assert (other.low, other.high, other.p_value) == (None, None, None)
        assert word in other.method


def test_a_module_is_counted_twice_and_as_its_file(whole):
    cost = measure(network(64), torch.randn(1, 6))
    side = whole.before
    assert (side.params, side.flops, side.layers) == (cost.params, cost.flops, cost.by_layer)
    assert side.flops_by == dict.fromkeys(("fvcore", "FlopCounterMode", "ONNX graph"), 576)


def test_latency_and_memory_are_there(whole):
    assert whole.batch == 1
    for side in whole.sides:
        assert 0 < side.latency.median <= side.latency.p95
        assert side.peak_memory is None or side.peak_memory > 0
    assert whole.before.latency.ratio == 1
    assert whole.before.peak_activations == 2 * 64 * 4  # before and after the ReLU


def test_json_round_trip(whole, bare):
    text = json.dumps(whole.to_dict(), allow_nan=False)
    assert Comparison.from_dict(json.loads(text)) == whole
    assert (bare.control, bare.change, bare.before.score) == (None, None, None)
    assert Comparison.from_dict(json.loads(json.dumps(bare.to_dict()))) == bare


def test_the_table_holds_every_number(whole):
    text, markdown = str(whole), whole.to_markdown()
    a, b, c = whole.sides
    for number in (
        "643", "43", "48", "576", "36", f"{a.file_bytes:,}", f"{b.file_bytes:,}", "6.7%",
        f"{a.latency.median:.3f}", f"{b.latency.p95:.3f}", f"{whole.max_difference:.2e}",
        f"{b.score.value:.4f} ({b.score.low:.4f} to {b.score.high:.4f})", str(whole.change),
        f"p = {whole.change.p_value:.3g}", f"{whole.agreement:.1%}", f"{c.peak_activations:,}",
    ):  # fmt: skip
        assert number in text, number
        assert number in markdown, number
    for words in ("before: Sequential", "after: small.onnx", "control: Sequential", "Wilson"):
        assert words in text
    assert "100 samples of the data" in text
    assert "The parameters of a file are its weights" in text


def test_a_difference_of_the_counters_is_explained():
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    text = str(compare(net, nn.Conv2d(1, 4, 1), torch.randn(2, 1, 5, 5)))
    assert "before: Sequential: fvcore counts 300 FLOPs and FlopCounterMode 100" in text
    assert "batch_norm 200 and 0" in text
    assert "after: Conv2d: fvcore" not in text


def test_layers_of_a_fused_file_lie_beside_those_of_the_module(tmp_path):
    net, x = network(8), torch.randn(3, 6)
    grown = network(8)
    attach_dendrites_(grown)
    for gains in (layer.gains for layer in grown.modules() if hasattr(layer, "gains")):
        nn.init.ones_(gains[0])
    export_onnx(fuse(grown), tmp_path / "grown.onnx", x)
    found = compare(net, tmp_path / "grown.onnx", x)
    layers = found.layers()
    assert list(layers) == ["0", "2"]
    assert [(a.width, b.width) for a, b in layers.values()] == [(8, 8), (3, 3)]
    for place, side in enumerate((found.before, found.after)):
        assert sum(pair[place].params for pair in layers.values()) == side.params
        assert sum(pair[place].flops for pair in layers.values()) == side.flops


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_pictures_show_every_layer_and_every_network(whole, ending, tmp_path):
    whole.plot(tmp_path / f"layers.{ending}")
    whole.plot(tmp_path / f"metric.{ending}", show="accuracy")
    assert (tmp_path / f"layers.{ending}").stat().st_size > 3000
    if ending == "svg":
        text = (tmp_path / "layers.svg").read_text()
        for words in ("output channels", "parameters", "FLOPs", "64 → 4", "448 → 28", "384 → 24"):
            assert words in text, words
        text = (tmp_path / "metric.svg").read_text()
        for words in ("before: Sequential", "after: small.onnx", "control: Sequential", "accuracy"):
            assert words in text, words
        first = (tmp_path / "layers.svg").read_bytes()
        whole.plot(tmp_path / "layers.svg")
        assert (tmp_path / "layers.svg").read_bytes() == first


def test_a_picture_of_a_metric_that_was_not_measured(bare, tmp_path):
    with pytest.raises(CompressionError, match="Give data to compare"):
        bare.plot(tmp_path / "a.svg", show="accuracy")
    with pytest.raises(CompressionError, match=r"\.svg or a \.png"):
        bare.plot(tmp_path / "a.pdf")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CompressionError, match="could not be"):
        bare.plot(tmp_path / "file" / "a.svg")


def test_any_metric_has_an_interval_and_says_how(files):
    def error(output, target):
        return (output.argmax(1) - target).abs().float().mean()

    task = Task(metric=error, higher_is_better=False, name="distance")
    sides = files / "big.onnx", files / "small.onnx"
    found = compare(*sides, torch.randn(2, 6), data=batches(), task=task)
    assert found.metric_name == "distance"
    assert found.before.score.low < found.before.score.value < found.before.score.high
    assert found.change.method == "paired bootstrap, 1,000 resamples"
    assert found.change.p_value is None
    assert "bootstrap, 1,000 resamples; of the change paired" in str(found)


def test_a_metric_over_more_than_samples_has_no_interval_and_says_so(files):
    def forward(model, batch):
        return model(batch[0]), (batch[1], torch.ones(()))

    def metric(output, target):
        return (output.argmax(1) == target[0]).float().mean()

    task = Task(metric=metric, forward=forward)
    sides = files / "big.onnx", files / "small.onnx"
    found = compare(*sides, torch.randn(2, 6), data=batches(), task=task)
    assert found.before.score.low is None
    assert "not one for each sample" in str(found)


def test_several_outputs_and_named_inputs(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 2)

        def forward(self, x, y):
            return {"p": self.a(x), "q": self.b(y)}

    net, inputs = Two(), {"x": torch.randn(3, 4), "y": torch.randn(3, 5)}
    export_onnx(net, tmp_path / "two.onnx", inputs)
    data = [(inputs, torch.zeros(3, dtype=torch.long))]
    task = Task(metric=lambda output, _: sum(t.abs().mean() for t in outputs_of(output)))
    found = compare(net, tmp_path / "two.onnx", inputs, data=data, task=task)
    assert found.max_difference < 1e-5
    assert found.before.score.value == pytest.approx(found.after.score.value)


def outputs_of(output):
    return list(output.values()) if isinstance(output, dict) else list(output)


def test_a_file_of_a_fixed_batch_size_is_timed_at_that(tmp_path):
    export_onnx(network(4), tmp_path / "a.onnx", torch.randn(3, 6), dynamic=None)
    found = compare(network(4), tmp_path / "a.onnx", torch.randn(3, 6))
    assert found.batch == 3
    assert [side.flops_by["ONNX graph"] for side in found.sides] == [36, 3 * 36]
    assert "counted at that size, 3" in str(found)
    assert "at batch 3" in str(found)


def test_the_models_stay_as_they_are():
    nets = [network(4).train(), network(5)]
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in nets]
    state = torch.get_rng_state()
    compare(*nets, torch.randn(2, 6, generator=torch.Generator()), data=make_data())
    assert torch.equal(state, torch.get_rng_state())
    assert [net.training for net in nets] == [True, True]
    for net, old in zip(nets, before, strict=True):
        assert all(torch.equal(value, old[key]) for key, value in net.state_dict().items())


# --- outputs that cannot be compared --------------------------------------------------------------


def test_outputs_of_different_shape_have_no_distance(bare):
    found = parity(torch.zeros(2, 3), torch.zeros(2, 4))
    assert (found.max_difference, found.agreement) == (None, None)
    text = str(replace(bare, **vars(found)))
    assert "outputs have shapes ((2, 3),) and ((2, 4),)" in text
    assert "largest output difference" not in text


def test_infinities_in_other_places_have_no_distance_and_equal_ones_do():
    a = torch.tensor([[1.0, torch.inf, 3.0], [torch.nan, 5.0, 6.0]])
    b = a + 0.5
    assert parity(a, b) == Parity(2, 0.5, 1.0)
    assert parity(a, torch.zeros(2, 3)).problem == "outputs have NaN or infinity in other places"
    assert parity((a, a), (b, a)).max_difference == 0.5
    assert parity(torch.tensor(1.0), torch.tensor(3.0)) == Parity(1, 2.0, None)


# --- bad input ------------------------------------------------------------------------------------


@pytest.fixture
def drafts(tmp_path, monkeypatch):
    """Where temporary files go; empty at the end."""
    folder = tmp_path / "drafts"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", hostile.FILES)
def test_a_damaged_or_hostile_file_is_refused_by_name(name, tmp_path, drafts):
    assert len(hostile.FILES) == 13
    (tmp_path / "in").mkdir()
    path = hostile.FILES[name](tmp_path / "in")
    with pytest.raises(StateMismatchError, match=r"a\.onnx") as raised:
        compare(path, path, torch.randn(2, 4))
    assert "\n" not in str(raised.value)


def test_a_file_that_runs_on_some_batches_only_is_told(tmp_path, drafts):
    (tmp_path / "in").mkdir()
    path = hostile.runs_for_two_alone(tmp_path / "in")
    with pytest.raises(CompressionError, match=r"not on a single sample, shapes \[\(1, 4\)\]"):
        compare(path, path, torch.randn(2, 4))
    with pytest.raises(CompressionError, match=r"a\.onnx was to be run on the example inputs"):
        compare(path, path, torch.randn(3, 4))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StateMismatchError, match="nothing"):
        compare(nn.Linear(6, 3), tmp_path / "nothing.onnx", torch.randn(2, 6))


def test_what_is_neither_module_nor_file_is_refused():
    with pytest.raises(CompressionError, match="takes modules and paths"):
        compare(nn.Linear(6, 3), 5, torch.randn(2, 6))


def test_networks_of_different_inputs_are_refused(files, drafts):
    with pytest.raises(CompressionError, match="exported"):
        compare(nn.Linear(6, 3), nn.Linear(7, 3), torch.randn(2, 6))
    with pytest.raises(CompressionError, match=r"small\.onnx .* shapes \[\(2, 7\)\].*same inputs"):
        compare(files / "small.onnx", files / "big.onnx", torch.randn(2, 7))
    with pytest.raises(CompressionError, match="takes 1 inputs"):
        compare(files / "small.onnx", files / "big.onnx", (torch.randn(2, 6),) * 2)
    with pytest.raises(CompressionError, match=r"small\.onnx"):
        compare(files / "small.onnx", files / "big.onnx", torch.zeros(2, 6, dtype=torch.long))


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (
            lambda output, target: 1 / 0,
            r"Task\.metric \(mine\).*100 samples.*raised ZeroDivisionError: division by zero",
        ),
        (lambda output, target: output, r"Task\.metric must return one number"),
    ],
)
def test_a_metric_that_raises_is_named(metric, words, files, drafts):
    task = Task(metric=metric, name="mine")
    with pytest.raises(CompressionError, match=words):
        compare(
            files / "big.onnx", files / "small.onnx", torch.randn(2, 6), data=batches(), task=task
        )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([(torch.randn(4, 7), torch.zeros(4, dtype=torch.long))], r"big\.onnx was to be run on"),
        ([torch.randn(4, 6)], r"a batch of \(inputs, target\) was expected|A batch of"),
        ([], "no batch"),
        (iter(batches()), "iterator that ends"),
        (7, "gone through again"),
    ],
)
def test_data_that_do_not_fit_are_named(data, words, files, drafts):
    with pytest.raises(CompressionError, match=words):
        compare(files / "big.onnx", files / "small.onnx", torch.randn(2, 6), data=data)


def test_data_that_change_between_passes_are_refused(files):
    class Changing:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(batches(count=self.passes))

    with pytest.raises(CompressionError, match="20 and 40 samples in two passes"):
        compare(files / "big.onnx", files / "small.onnx", torch.randn(2, 6), data=Changing())


# --- the command line -----------------------------------------------------------------------------


def test_the_command_prints_all_forms_and_writes_pictures(files, tmp_path, capsys):
    command = ["compare", str(files / "big.onnx"), str(files / "small.onnx"), "--input", "4,6"]
    digests = [hashlib.sha256(p.read_bytes()).digest() for p in sorted(files.iterdir())]
    more = ["--data", "tests.comparison.test_side_by_side:make_data", "--json"]
    more += ["--control", "tests.comparison.test_side_by_side:make_network"]
    more += ["--plot", str(tmp_path / "a.svg"), "--plot-metric", str(tmp_path / "b.png")]
    assert main([*command, *more]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("notes") == []  # of the command alone: whose weights are random
    found = Comparison.from_dict(printed)
    assert (found.before.params, found.after.params, found.control.params) == (643, 43, 53)
    assert {p.name for p in tmp_path.iterdir()} == {"a.svg", "b.png"}
    assert main([*command, "--markdown"]) == 0
    assert "| parameters | 643 | 43 | 6.7% |" in capsys.readouterr().out
    assert digests == [hashlib.sha256(p.read_bytes()).digest() for p in sorted(files.iterdir())]


def test_a_failing_command_says_why_in_one_line(files, tmp_path, capsys):
    big = str(files / "big.onnx")
    for more, words in (
        (
            ["--data", "tests.comparison.test_side_by_side:make_trouble"],
            "RuntimeError: no data today",
        ),
        (["--data", "tests.comparison.test_side_by_side:nothing"], "could not be"),
        (["--plot-metric", str(tmp_path / "a.svg")], "Give data to compare"),
        (["--plot", str(tmp_path / "a.pdf")], ".svg or a .png"),
    ):
        assert main(["compare", big, big, "--input", "1,6", *more]) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert words in lines[0]
    assert main(["compare", big, big, "--input", "1,7"]) == 1
    assert "does not take them" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["compare", big, big, "--input", "1,6", "--json", "--markdown"])
    assert stopped.value.code == 2
