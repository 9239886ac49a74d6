"""Runs without numbers: the shapes and types of real ones, real masks, and values that are told."""

import pytest
import torch
from torch import nn

from pbcompress.core.blanks import Blanks
from pbcompress.core.inputs import as_call, tensors_of
from pbcompress.core.shapes_only import ShapesOnly
from pbcompress.core.streamed import StreamedWeights
from pbcompress.errors import CompressionError
from tests.support.nets import CASES


def blank(network):
    blanks = Blanks()
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                like = blanks.like(parameter.shape, parameter.device, parameter.dtype)
                module._parameters[name] = nn.Parameter(like)
    return ShapesOnly(network, blanks)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_outputs_have_the_shapes_of_a_real_run(name):
    network, call = CASES[name].build().eval(), as_call(CASES[name].inputs(2))
    expected = tensors_of(network(*call.args, **call.kwargs))
    with blank(network):
        found = tensors_of(network(*call.args, **call.kwargs))
    assert [(t.shape, t.dtype, t.stride()) for t in found] == [
        (t.shape, t.dtype, t.stride()) for t in expected
    ]


class Reads(nn.Module):
    """Reads what it is given, or what it has computed."""

    def __init__(self, computed):
        super().__init__()
        self.layer, self.computed = nn.Linear(4, 4), computed

    def forward(self, x):
        y = self.layer(x)
        asked = y if self.computed else x
        return y + 1 if bool((asked > 0).all()) else y.flatten()


@torch.no_grad()
def test_what_follows_from_inputs_alone_can_be_read_and_nothing_else():
    network = Reads(computed=False)
    with blank(network):
        assert network(torch.ones(2, 4)).shape == (2, 4)
        assert network(-torch.ones(2, 4)).shape == (8,)
    network = Reads(computed=True)
    with blank(network), pytest.raises(CompressionError, match="no data"):
        network(torch.ones(2, 4))


@torch.no_grad()
def test_operations_in_place_give_the_tensor_that_they_write_to():
    network = nn.Linear(3, 3)
    with blank(network):
        real = torch.zeros(2, 3)
        assert real.add_(network.weight.sum()) is real
        with pytest.raises(CompressionError, match="no data"):
            real.sum().item()


@torch.no_grad()
def test_a_weight_is_made_for_each_operation_and_under_views():
    made = []
    stands_in = nn.Parameter(torch.zeros(3, 2))

    def make():
        made.append(1)
        return torch.arange(6.0).view(3, 2)

    with StreamedWeights({id(stands_in): make}):
        product = nn.functional.linear(torch.ones(1, 2), stands_in)
        joined = torch.cat([stands_in, stands_in])
    assert product.tolist() == [[1.0, 5.0, 9.0]]
    assert joined.shape == (6, 2)
    assert joined[3:].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert len(made) == 3
