"""LeNet-5 on MNIST at published sizes, by the recipe `lenet5` of the zoo.

    python -m scripts.lenet.run lines.jsonl

A seed decides the validation split, the first weights and the order of the batches. Each size is
reached by one call of `compress` from the trained network of its seed. Weights are chosen on the
validation split; the test split is scored once.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import pbcompress as pb
from pbcompress.recipes.recipe import Recipe
from scripts.lines import append_line, read_lines

__all__ = ["ALLOCATIONS", "RECIPE", "SIZES"]

RECIPE = Path(__file__).parents[2] / "model_zoo" / "recipes" / "lenet5" / "recipe.toml"
SIZES = (6212, 2792, 12424, 38927)  # of 9-18-65-25 and 5-10-76-16; between; of 20-25-45-462
ALLOCATIONS = ("accurate", "balanced")
DEFAULT_SIZE = SIZES[:1]  # of the default allocation


def lines_of(recipe: Recipe, done: set[tuple[str, int]], path: Path) -> None:
    """Train a base network, compress it to every size, and append the lines."""
    data, model = recipe.make_data(), recipe.make_model()
    assert recipe.train is not None
    base = pb.CompressConfig(dendrites=pb.DendriteConfig(max_sets=0), recovery=recipe.train)
    pb.recover_(model, data, config=base, seed=recipe.seed, stage="base")
    assert data.test is not None
    about: dict[str, Any] = {"seed": recipe.seed}
    for split, batches in (("val", data.val), ("test", data.test)):
        about[f"base_{split}"] = pb.evaluate(model, batches, pb.Task())[0]
    for allocation in ALLOCATIONS:
        for size in SIZES if allocation == ALLOCATIONS[0] else DEFAULT_SIZE:
            if (allocation, size) in done:
                continue
            width = replace(recipe.config.width, allocation=allocation)
            config = replace(recipe.config, width=width, deploy=False)
            result = pb.compress(
                model, size, data=data, config=config, seed=recipe.seed, progress=False
            )
            cost, score = result.cost_after, result.score_after
            assert score is not None
            widths = [layer.width for layer in cost.by_layer.values()][:3]
            line = {"allocation": allocation, "size": size, "widths": widths, "params": cost.params}
            line |= {"flops": cost.flops, "val": score.val, "test": score.test}
            append_line(path, about | line | {"epochs": recipe.config.recovery.epochs})


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not yet there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lines", type=Path, help="file of lines, made or added to")
    parser.add_argument("--folder", default="data", help="where the data sets are")
    parser.add_argument("--seeds", nargs="+", type=int, default=range(3))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    wanted = len(SIZES) + len(DEFAULT_SIZE)
    for seed in options.seeds:
        lines = [line for line in read_lines(options.lines) if line["seed"] == seed]
        done = {(line["allocation"], line["size"]) for line in lines}
        if len(done) < wanted:
            changes = {
                "compress.seed": seed,
                "data.arguments.seed": seed,
                "data.arguments.folder": options.folder,
            }
            lines_of(Recipe.read(RECIPE, changes=changes), done, options.lines)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
