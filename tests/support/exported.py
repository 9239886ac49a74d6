"""Networks that are exported: those of the zoo, with dendrites of every form, and odd ones."""

import torch
from torch import nn

import model_zoo
from pbcompress import attach_dendrites_, fuse
from pbcompress.core.tensor_files import write_tensors
from tests.support.configs import dendrites_of

INPUTS = {
    "cnn1d": (1, 6, 40),
    "lenet": (1, 1, 28, 28),
    "lenet5": (1, 1, 28, 28),
    "minilm": (1, 16),
    "mlp": (1, 1, 28, 28),
    "mobilenet_small": (1, 3, 32, 32),
    "resnet20": (1, 3, 32, 32),
    "resnet56": (1, 3, 32, 32),
    "small_cnn": (1, 1, 28, 28),
    "text_transformer": (1, 48),
}
TEXTS = ("minilm", "text_transformer")
FORMS = ("full", "grouped", "lowrank", "shared", "tied")


def zoo_inputs(name: str) -> torch.Tensor:
    """Return a random sample for a network of the zoo: words for those that read."""
    return torch.randint(256, INPUTS[name]) if name in TEXTS else torch.randn(INPUTS[name])


def grown(form):
    """A network with two sets that matter on each layer; images of 2 x 6 x 6."""
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    for _ in range(2):
        attach_dendrites_(network, dendrites_of(form=form, groups=2))
    for name, parameter in network.named_parameters():
        if "gains" in name or "links" in name:
            nn.init.normal_(parameter)
    return network


def networks(names, forms):
    """Frozen networks, and inputs of one sample, by name."""
    zoo = {n: (fuse(model_zoo.create_model(n)), zoo_inputs(n)) for n in names}
    return zoo | {form: (fuse(grown(form)), torch.randn(1, 2, 6, 6)) for form in forms}


def keep_outputs(network, inputs, path):
    """Write three samples and what the network computes from them, for another process."""
    shape = (3, *inputs.shape[1:])
    x = torch.randn(shape) if inputs.is_floating_point() else torch.randint(256, shape)
    with torch.no_grad():
        write_tensors(path, {"input": x, "output": network(x)}, {})


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, left, right, scale=1.0):
        return {"sum": self.a(left) + self.b(right) * scale, "left": self.a(left)}


class Fickle(nn.Module):
    """Answers differently each time it is asked: no file can equal it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) + self.calls
