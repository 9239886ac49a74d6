"""Networks that no file can equal: they do not equal themselves; and batches on other axes."""

import pytest
import torch
from torch import nn

import pbcompress as pb

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Dropping(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x)


class Running(nn.Module):
    """Keeps a mean of what it saw, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 4))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0, keepdim=True).detach()
        return x + self.mean


@pytest.mark.parametrize("kind", [Noise, Dropping, Running])
def test_a_network_that_differs_from_itself_is_told_from_a_fault_of_the_file(kind, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), kind()).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(pb.ExportMismatchError, match="returns other values each time") as caught:
        pb.export_onnx(model, tmp_path / "net.onnx", X)
    assert "bug" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.out = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x, state):
        x, state = self.rnn(x, state)
        return self.out(x), state


def test_a_state_with_the_batch_on_its_second_axis_is_said_to_be_so(tmp_path):
    model, inputs = Stateful().eval(), (torch.randn(2, 5, 8), torch.zeros(1, 2, 16))
    with pytest.raises(pb.CompressionError, match=r"state of nn\.GRU.*batch_axes="):
        pb.export_onnx(model, tmp_path / "net.onnx", inputs)
    example = pb.Example(inputs, batch_axes={"x": 0, "state": 1})
    assert pb.export_onnx(model, tmp_path / "net.onnx", example).max_difference < 1e-5
    assert pb.measure(model, example).flops == 5 * (3 * 16 * (8 + 16) + 16 * 3)
