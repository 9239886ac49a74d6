"""Two networks side by side, modules and files mixed."""

import pytest
import torch
from torch import nn

from pbcompress import CompressionError, StateMismatchError, compare, export_onnx


def network(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def test_module_against_its_own_file_is_equal(tmp_path):
    model, x = network(8), torch.randn(16, 6)
    export_onnx(model, tmp_path / "small.onnx", x)

    result = compare(model, tmp_path / "small.onnx", x)

    assert result.before.params == result.after.params == 83
    assert result.before.flops == result.after.flops == 72
    assert result.max_difference < 1e-5
    assert result.agreement == 1


@pytest.mark.parametrize("swap", [False, True])
def test_every_mixture_of_module_and_file(swap, tmp_path):
    wide, narrow, x = network(64), network(4), torch.randn(4, 6)
    export_onnx(narrow, tmp_path / "narrow.onnx", x)
    sides = [wide, str(tmp_path / "narrow.onnx")]

    result = compare(*reversed(sides), x) if swap else compare(*sides, x)

    big, small = (result.after, result.before) if swap else (result.before, result.after)
    assert (big.params, small.params) == (643, 43)
    assert small.name == "narrow.onnx"
    assert "parameters" in str(result)
    assert "| parameters |" in result.to_markdown()
    assert result.to_dict()["before"]["params"] == result.before.params


def test_outputs_of_different_shape_have_no_distance():
    result = compare(nn.Linear(6, 3), nn.Linear(6, 4), torch.randn(2, 6))
    assert result.max_difference is None
    assert result.agreement is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StateMismatchError, match="nothing"):
        compare(nn.Linear(6, 3), tmp_path / "nothing.onnx", torch.randn(2, 6))


def test_what_is_neither_module_nor_file_is_refused():
    with pytest.raises(CompressionError, match="takes modules and paths"):
        compare(nn.Linear(6, 3), 5, torch.randn(2, 6))


def test_networks_of_different_inputs_are_refused():
    with pytest.raises(CompressionError, match="exported"):
        compare(nn.Linear(6, 3), nn.Linear(7, 3), torch.randn(2, 6))
