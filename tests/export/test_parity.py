"""A file is judged by float64: what float32 costs is excused, what is wrong is not."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pbcompress import Data, ExportMismatchError, Task, export_onnx
from pbcompress.core.inputs import Call
from pbcompress.errors import CompressionError
from pbcompress.export import onnx_writer
from pbcompress.export import parity as parity_module
from pbcompress.export.free_axes import Inputs
from pbcompress.export.parity import _gap
from pbcompress.onnx_files.session import Session


class Cancelling(nn.Module):
    """Its outputs are small differences of large sums: float32 is off by some 1e-4 of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.narrow = nn.Linear(64, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.wide(x).tanh() + 300
        return self.narrow(h) - self.narrow(torch.full_like(h, 300.0))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.small, self.large = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"small": self.small(x), "large": self.large(x)}


class Single(nn.Module):
    """Does not run in float64: its type is written into the code."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.mm(x.float(), torch.ones(6, 3, dtype=torch.float32)) + 1


def scaled(model: nn.Module, **factors: float) -> nn.Module:
    """A copy with some layers changed."""
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        for name, factor in factors.items():
            wrong.get_submodule(name).weight.mul_(factor)
    return wrong


def exported_as(monkeypatch, wrong: nn.Module) -> None:
    """Let the exporter write another network than the one that it is given."""
    translate = onnx_writer.translate
    monkeypatch.setattr(
        onnx_writer, "translate", lambda _, *rest, **named: translate(wrong, *rest, **named)
    )


def test_a_network_that_float32_is_hard_on_is_not_blamed_on_the_file(tmp_path):
    report = export_onnx(Cancelling(), tmp_path / "a.onnx", torch.randn(4, 64))

    assert report.torch_error > 1e-5  # the network's own
    assert report.file_error < 8 * report.torch_error


@pytest.mark.parametrize("layer", ["wide", "narrow"])
def test_there_too_a_wrong_file_is_refused(layer, tmp_path, monkeypatch):
    model = Cancelling().eval()
    exported_as(monkeypatch, scaled(model, **{layer: 1.01}))

    with pytest.raises(ExportMismatchError, match="from float64 torch is off by"):
        export_onnx(model, tmp_path / "a.onnx", torch.randn(4, 64))
    assert not list(tmp_path.iterdir())


def test_the_worst_output_is_named(tmp_path, monkeypatch):
    model = Two().eval()
    exported_as(monkeypatch, scaled(model, small=1.001, large=1.5))

    with pytest.raises(ExportMismatchError, match="output 'large' differs") as caught:
        export_onnx(model, tmp_path / "a.onnx", torch.randn(4, 6))
    assert "layer that differs is small" in str(caught.value)


def test_a_difference_that_float32_does_not_explain_is_refused_though_it_is_small(
    tmp_path, monkeypatch
):
    model = Two().eval()
    exported_as(monkeypatch, scaled(model, small=1 + 5e-5))  # below what two runtimes may differ

    with pytest.raises(ExportMismatchError, match="'small'"):
        export_onnx(model, tmp_path / "a.onnx", torch.randn(4, 6))


def test_a_network_that_does_not_run_in_float64_is_compared_in_float32(tmp_path):
    report = export_onnx(Single(), tmp_path / "a.onnx", torch.randn(4, 6))

    assert (report.file_error, report.torch_error) == (None, None)
    assert report.max_relative < 1e-5


@pytest.mark.parametrize(
    ("wanted", "got", "best", "is_fine"),
    [
        ([1.0, 2.0], [1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.0], [1.0, 2.00001], [1.0, 2.0], True),
        ([1.0, 2.0], [1.0, 2.001], [1.0, 2.0], False),
        ([1.0, 2.0], [1.0, 2.001], [1.0, 2.0005], True),  # torch is as far off
        ([1.0, 2.0], [1.0, 2.6], [1.0, 2.3], False),  # noise proves nothing
        ([1.0, 2.0], [1.0, 2.0001], None, True),
        ([1.0, 2.0], [1.0, 2.001], None, False),
        ([np.nan, 2.0], [np.nan, 2.0], [np.nan, 2.0], True),
        ([np.nan, 2.0], [1.0, 2.0], [np.nan, 2.0], False),
        ([np.inf, 2.0], [np.nan, 2.0], [np.inf, 2.0], True),
        ([], [], [], True),
    ],
)
def test_what_is_rounding(wanted, got, best, is_fine):
    exact = None if best is None else np.array(best)
    single = [np.array(v, np.float32) for v in (wanted, got)]
    gap = _gap("y", "batch size 1", ((), {}), *single, exact)
    assert (gap.excess <= 1) == is_fine


def test_whole_numbers_must_be_equal_and_shapes_the_same():
    a, b = np.array([1, 2]), np.array([1, 3])
    assert _gap("y", "", ((), {}), a, a, a).excess == 0
    assert _gap("y", "", ((), {}), a, b, a).excess == np.inf
    assert _gap("y", "", ((), {}), a, a[:1], a).excess == np.inf


def test_the_same_highest_output_is_counted(tmp_path):
    report = export_onnx(nn.Linear(6, 3), tmp_path / "a.onnx", torch.randn(4, 6))
    assert report.agreement == 1.0
    rows = np.eye(3, dtype=np.float32)
    gap = _gap("y", "", ((), {}), rows, rows[[0, 1, 1]], rows.astype(np.float64))
    assert (gap.agreed, gap.rows) == (2, 3)


def test_large_batches_stop_where_they_take_long(monkeypatch, tmp_path):
    monkeypatch.setattr(parity_module, "LARGE_SECONDS", 0.0)
    report = export_onnx(nn.Linear(6, 3), tmp_path / "a.onnx", torch.randn(4, 6))
    assert report.batch_sizes == (1, 2, 5)


def test_the_metric_of_the_task_is_that_of_the_file(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(6, 3).eval()
    batches = [(torch.randn(n, 6), torch.randint(3, (n,))) for n in (16, 7)]
    right = sum((model(x).argmax(1) == y).sum().item() for x, y in batches)

    report = export_onnx(
        model, tmp_path / "a.onnx", torch.randn(1, 6), data=Data(batches, batches), task=Task()
    )

    session = Session(tmp_path / "a.onnx")
    found = [(session.run(session.feeds([x]))[0].argmax(1) == y.numpy()).sum() for x, y in batches]
    assert report.metric_file == pytest.approx(sum(found) / 23)
    assert report.metric_torch == pytest.approx(right / 23)
    assert report.metric_name == "accuracy"
    assert "accuracy" in str(report)
    facts = json.loads(json.dumps(report.to_dict()))
    assert facts["metric_file"] == report.metric_file
    assert report.checks == 3 * 5 + 2  # the example, a batch of val, and three seeds; fewer at 64


def test_a_task_that_needs_more_of_its_network_than_calls_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(6, 3)).eval()
    batches = [(torch.randn(4, 6), torch.randint(3, (4,)))]
    task = Task(forward=lambda net, batch: (net[0](net(batch[0]) @ torch.ones(3, 6)), batch[1]))

    with pytest.raises(CompressionError, match="in place of the network"):
        export_onnx(
            model, tmp_path / "a.onnx", batches[0][0], data=Data(batches, batches), task=task
        )
    assert not list(tmp_path.iterdir())


def test_samples_are_compared_and_must_fit(tmp_path):
    model = nn.Linear(6, 3)
    x = torch.randn(2, 6)

    report = export_onnx(model, tmp_path / "a.onnx", x, samples=[torch.randn(9, 6)])
    assert report.checks == 3 * 5 + 2

    for wrong in (torch.randn(2, 5), torch.zeros(2, 6, dtype=torch.int64), (x, x)):
        with pytest.raises(CompressionError, match=r"samples\[0\] has|bound to forward"):
            export_onnx(model, tmp_path / "b.onnx", x, samples=[wrong])
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


def test_a_random_run_leaves_whole_numbers_as_they_are():
    ids = torch.tensor([[1, 2]])
    inputs = Inputs(nn.Embedding(3, 2), Call((ids,), {}))
    runs = list(parity_module._runs([inputs], [{}]))
    assert len(runs) == 4
    assert all(torch.equal(call[0][0], ids) for _, call in runs)
