"""Does a small network gain if it starts from a larger one that was compressed before?

python -m scripts.recovery.nested digits fashion_mnist

A line for each target and seed: test accuracy of the original, and of the result from the original
(alone), from the next larger result (nested), and from the original in as many epochs as nested and
all larger ones have had together (longer). See the decision on the targets of a frontier.
"""

import json
import sys

import torch
from torch import nn

import pbcompress as pb
from model_zoo.datasets import load_dataset, make_loaders

SHARES = (0.5, 0.25, 0.12, 0.06)
SEEDS = 3
EPOCHS = 4  # a target; the original has three times as many
LOADERS = {
    "digits": {"num_val": 300, "batch_size": 64},
    "fashion_mnist": {"num_val": 2000, "batch_size": 64, "train_limit": 4000},
}


def make_network() -> nn.Module:
    """Return a network of 24 thousand parameters for images of one channel."""
    layers: list[nn.Module] = []
    for width_in, width_out, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2)):
        conv = nn.Conv2d(width_in, width_out, 3, padding=1, stride=stride, bias=False)
        layers += [conv, nn.BatchNorm2d(width_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def compressed(model: nn.Module, params: int, data: pb.Data, epochs: int, seed: int):
    """Return the result of `compress`."""
    config = pb.CompressConfig(recovery=pb.RecoveryConfig(epochs=epochs), deploy=False)
    return pb.compress(model, params, data=data, config=config, seed=seed, progress=False)


def measure(name: str, seed: int) -> None:
    """Print the lines of one data set and seed."""
    loaders = make_loaders(load_dataset(name), seed=seed, **LOADERS[name])
    data = pb.Data(train=loaders.train, val=loaders.val, test=loaders.test)
    torch.manual_seed(seed)
    model = make_network()
    recovery = pb.RecoveryConfig(epochs=3 * EPOCHS, compensation_batches=0)
    dendrites = pb.DendriteConfig(max_sets=0)
    config = pb.CompressConfig(recovery=recovery, dendrites=dendrites)
    pb.recover_(model, data, config=config, seed=seed)
    base = pb.evaluate(model, data.test, pb.Task())[0]
    size, larger = sum(p.numel() for p in model.parameters()), model
    for place, share in enumerate(SHARES, start=1):
        params = int(share * size)
        alone = compressed(model, params, data, EPOCHS, seed)
        nested = compressed(larger, params, data, EPOCHS, seed) if place > 1 else alone
        longer = compressed(model, params, data, place * EPOCHS, seed) if place > 1 else alone
        larger = nested.model
        kinds = {"alone": alone, "nested": nested, "longer": longer}
        tests = {kind: result.score_after.test for kind, result in kinds.items()}
        line = {"set": name, "seed": seed, "share": share, "base": base, **tests}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        for seed in range(SEEDS):
            measure(name, seed)
