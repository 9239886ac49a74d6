"""`compress` with batches of inputs alone: fitted in closed form, nothing trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pbcompress import CompressConfig, CompressionError, StateMismatchError, compress


def calibration_of(kind: str) -> Any:
    torch.manual_seed(4)
    batches = [torch.randn(32, 8) for _ in range(6)]
    kinds = {
        "tensors": batches,
        "loader": DataLoader(TensorDataset(torch.cat(batches)), batch_size=32),
        "dicts": [{"input": batch} for batch in batches],
        "labelled": [(batch, None) for batch in batches],
    }
    return kinds[kind]


@pytest.mark.parametrize("kind", ["tensors", "loader", "dicts", "labelled"])
def test_inputs_alone_give_a_fitted_network_in_one_call(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    config = CompressConfig(deploy=False)
    new = torch.randn(256, 8)
    cut = compress(net, 0.5, example_inputs=new[:1], config=config)
    fitted = compress(net, 0.5, data=calibration_of(kind), config=config, run_dir=tmp_path)
    errors = [
        float((result.model(new) - net(new)).detach().square().mean()) for result in (cut, fitted)
    ]
    assert errors[1] < 0.25 * errors[0]
    assert fitted.cost_after.params == cut.cost_after.params
    assert fitted.chosen.compensation is not None
    assert "Nothing was trained" in fitted.note
    assert "mean error fell from" in fitted.note


def test_other_inputs_are_another_run(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    config = CompressConfig(deploy=False)
    batches = calibration_of("tensors")
    compress(net, 0.5, data=batches, config=config, run_dir=tmp_path)
    with pytest.raises(StateMismatchError, match=r"Data\.train"):
        compress(net, 0.5, data=[b + 1 for b in batches], config=config, run_dir=tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(4, 8), "found a Tensor"),
        ([], "yielded no batch"),
        (iter([torch.zeros(4, 8)]), "iterator that ends"),
        ([torch.full((4, 8), torch.nan)], "NaN"),
        ([torch.zeros(4, 9)], "does not take the first batch"),
    ],
)
def test_inputs_that_cannot_be_used_are_said_first(data: Any, message: str) -> None:
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    with pytest.raises(CompressionError, match=message):
        compress(net, 0.5, data=data)


def test_a_later_batch_that_does_not_fit_is_named() -> None:
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    batches = [*calibration_of("tensors"), torch.zeros(4, 9)]
    with pytest.raises(RuntimeError) as caught:
        compress(net, 0.5, data=batches, config=CompressConfig(deploy=False))
    assert "batch 6 of those that are fitted on" in caught.value.__notes__[0]
