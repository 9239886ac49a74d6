"""Axes that are the batch: several symbols of a graph move together, what is none is not cut."""

import pytest
import torch
from torch import Tensor, nn

from pbcompress import (
    CompressionError,
    Example,
    ExportMismatchError,
    Task,
    export_onnx,
    measure,
    plan_widths,
    shrink,
)
from pbcompress.core.inputs import as_call, single_sample
from pbcompress.export.free_axes import Inputs
from pbcompress.onnx_files.session import Session
from pbcompress.training.task import inputs_of


class Towers(nn.Module):
    """Reads the batch size of one input only, so that the other has a symbol of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(6, 8), nn.Linear(4, 8)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k = (t.view(x.shape[0], -1, 2, 4).transpose(1, 2) for t in (self.q(x), self.kv(context)))
        return (q @ k.transpose(2, 3)).mean((1, 3))


class Graph(nn.Module):
    """Sums messages along edges."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            sent = layer(nodes)
            nodes = sent.index_add(0, edges[1], sent[edges[0]]).relu()
        return self.head(nodes)


NODES, EDGES = torch.randn(7, 5), torch.tensor([[0, 6, 3, 2], [5, 1, 4, 6]])


def test_axes_with_symbols_of_their_own_are_proven_together(tmp_path):
    report = export_onnx(
        Towers().eval(), tmp_path / "a.onnx", (torch.randn(2, 5, 6), torch.randn(2, 3, 4))
    )
    assert report.batch_sizes[:3] == (1, 2, 5)
    sides = Session(tmp_path / "a.onnx").interface()["inputs"]
    assert {side["shape"][0] for side in sides} == {"batch"}


@pytest.mark.slow
def test_an_encoder_of_transformers_with_a_mask_has_a_free_batch(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=20, intermediate_size=16, **sizes)
    batch = {
        "input_ids": torch.randint(1, 20, (2, 6)),
        "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
    }
    report = export_onnx(transformers.BertModel(config).eval(), tmp_path / "a.onnx", batch)
    assert report.batch_sizes[:3] == (1, 2, 5)


def test_a_graph_without_a_batch_is_measured_planned_and_exported_whole(tmp_path):
    torch.manual_seed(0)
    model, example = Graph().eval(), Example((NODES, EDGES), batch_axes={})
    assert measure(model, example).flops == 7 * (5 * 16 + 16 * 16 + 16 * 3)

    small = shrink(model, plan_widths(model, example, 0.6)).eval()

    assert small(NODES, EDGES).shape == (7, 3)
    report = export_onnx(small, tmp_path / "a.onnx", example)
    assert report.batch_sizes == (1,)
    shapes = [side["shape"] for side in Session(tmp_path / "a.onnx").interface()["inputs"]]
    assert shapes == [[7, 5], [2, 4]]


def test_only_the_axes_that_are_named_are_cut():
    model = Towers()
    example = Example((torch.zeros(3, 2, 6), torch.zeros(3, 4, 4)), {"x": 1, 1: -3})
    one = single_sample(as_call(example), model)
    assert [t.shape for t in one.args] == [(3, 1, 6), (1, 4, 4)]
    assert Inputs(model, as_call(example)).batch().places == ((0, 1),)  # not of the same length
    assert one.batch_axes == example.batch_axes
    assert one.example_inputs.batch_axes == example.batch_axes


@pytest.mark.parametrize("axes", [{"z": 0}, {"x": 3}])
def test_an_axis_that_is_not_there_is_refused(axes):
    example = Example((torch.zeros(3, 2, 6), torch.zeros(3, 4, 4)), axes)
    with pytest.raises(CompressionError, match="batch_axes"):
        plan_widths(Towers(), example, 0.5)


def test_the_task_can_say_it():
    batches = [((NODES, EDGES), torch.zeros(7, dtype=torch.long))]
    task = Task(batch_axes={})
    call = inputs_of(batches, task, Graph(), torch.device("cpu"))
    assert call.batch_axes == {}
    assert plan_widths(Graph(), (NODES, EDGES), 0.6, task=task).cost_after.params > 0


def test_a_none_fixes_one_input_and_leaves_the_batch_of_the_others(tmp_path):
    inputs = Inputs(Towers(), as_call((torch.zeros(2, 5, 6), torch.zeros(2, 3, 4))))
    (batch,) = inputs.free({"context": {0: None}})
    assert (batch.places, batch.is_batch) == (((0, 0),), True)


@pytest.mark.slow
def test_torchs_fast_path_for_padded_batches_is_named(tmp_path):
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
            self.stack = nn.TransformerEncoder(layer, 1)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.stack(x, src_key_padding_mask=mask)

    inputs = torch.randn(2, 4, 8), torch.tensor([[False] * 4, [False] * 2 + [True] * 2])
    with (
        pytest.warns(UserWarning, match="nested"),
        pytest.raises(ExportMismatchError, match="enable_nested_tensor=False"),
    ):
        export_onnx(Padded().eval(), tmp_path / "a.onnx", inputs)
    assert not list(tmp_path.iterdir())
