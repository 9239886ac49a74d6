"""Compare forms and rules of dendrites with plain width at equal size, on Fashion-MNIST.

One trained network, one target, one line of JSON for each arm; the epochs and restarts of all
arms are alike. Select by the validation figures: the test figures are there to be reported.

    python scripts/compare_forms.py --folder data --seed 0 --target 0.25
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

import pbcompress as pb
from model_zoo import create_model
from model_zoo.datasets import load_loaders

EPOCHS, DENDRITE_EPOCHS = 12, 4
OFF = pb.DendriteConfig(max_sets=0)
EARLY = ("features.0.conv", "features.1.conv")
UNIFORM = pb.WidthConfig(allocation="uniform")


def arms() -> Iterator[tuple[str, pb.DendriteConfig, pb.WidthConfig]]:
    """Yield the name and the choices of every arm."""
    yield "width, uniform", OFF, UNIFORM
    yield "width, global", OFF, pb.WidthConfig(allocation="global")
    for rule in ("correlation", "hybrid", "gradient"):
        yield f"full, {rule}", pb.DendriteConfig(rule=rule, share=1.0), UNIFORM
    for rule in ("hybrid", "gradient"):
        grouped = pb.DendriteConfig(rule=rule, form="grouped", share=1.0)
        yield f"grouped, {rule}", grouped, UNIFORM
        for nodes, share in ((8, 0.3), (16, 0.5)):
            shared = pb.DendriteConfig(rule=rule, form=pb.Shared(nodes=nodes), share=share)
            yield f"shared {nodes}, {rule}", shared, UNIFORM
    for rule in ("correlation", "gradient"):
        early = pb.DendriteConfig(rule=rule, form="shared", share=1.0, layers=EARLY)
        yield f"shared 8 in early layers, {rule}", early, UNIFORM


def main(argv: Sequence[str] | None = None) -> int:
    """Run all arms of one seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="data", help="where fetch_data.py put the data set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", type=float, default=0.25)
    parser.add_argument("--train-limit", type=int, default=12_000)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    loaders = load_loaders(
        "fashion_mnist", options.folder, num_val=5000, train_limit=options.train_limit
    )
    data = pb.Data(loaders.train, loaders.val, loaders.test)
    torch.manual_seed(options.seed)
    model = create_model("small_cnn", widths=(16, 32, 64), first_stride=2)
    base = pb.CompressConfig(dendrites=OFF, recovery=pb.RecoveryConfig(epochs=15))
    pb.recover_(model, data, seed=options.seed, config=base)
    lengths = {"epochs": EPOCHS, "dendrite_epochs": DENDRITE_EPOCHS, "thaw_epochs": 0}
    recovery = pb.RecoveryConfig(max_failures=1, **lengths)
    for name, dendrites, width in arms():
        config = pb.CompressConfig(dendrites=dendrites, recovery=recovery, width=width)
        print(json.dumps(run(name, model, data, config, options.target, options.seed)), flush=True)
    return 0


def run(
    name: str,
    model: nn.Module,
    data: pb.Data,
    config: pb.CompressConfig,
    target: float,
    seed: int,
) -> dict[str, object]:
    """Shrink, recover and score one arm."""
    example = torch.zeros(1, 1, 28, 28)
    plan = pb.plan_widths(model, example, target, config=config)
    small = pb.shrink(model, plan)
    is_width = config.dendrites.max_sets == 0
    lengths = (EPOCHS, DENDRITE_EPOCHS, EPOCHS) if is_width else None
    history = pb.recover_(
        small, data, seed=seed, config=config, layers=plan.grow or None, lengths=lengths
    )
    loss = replace(pb.Task(), metric=nn.functional.cross_entropy)
    cost = pb.measure(small, example)
    return {
        "arm": name,
        "seed": seed,
        "target": target,
        "params": cost.params,
        "flops": cost.flops,
        "steps": history.steps,
        "val": pb.evaluate(small, data.val, pb.Task())[0],
        "val_loss": pb.evaluate(small, data.val, loss)[0],
        "test": pb.evaluate(small, data.test or (), pb.Task())[0],
    }


if __name__ == "__main__":
    raise SystemExit(main())
