"""LeNet-5 on MNIST at published sizes, by the recipe `lenet5` of the zoo.

    python -m scripts.lenet.run lines.jsonl

A seed decides the validation split, the first weights and the order of the batches. Each size is
reached by one call of `compress` from the trained network of its seed. Weights are chosen on the
validation split; the test split is scored once.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pbcompress as pb
from pbcompress.recipes.recipe import Recipe
from scripts.lines import append_line, read_lines

__all__ = ["JOBS", "RECIPE"]

RECIPE = Path(__file__).parents[2] / "model_zoo" / "recipes" / "lenet5" / "recipe.toml"
JOBS = (  # allocation, and parameters: of 9-18-65-25, of 5-10-76-16, between, of 20-25-45-462
    ("accurate", 6212),
    ("accurate", 2792),
    ("balanced", 6212),
    ("accurate", 12_424),
    ("accurate", 38_927),
)


@dataclass
class Base:
    """The trained network of a seed."""

    recipe: Recipe
    data: pb.Data = field(init=False)
    model: nn.Module = field(init=False)
    scores: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.data, self.model = self.recipe.make_data(), self.recipe.make_model()
        assert self.recipe.train is not None
        assert self.data.test is not None
        base = pb.CompressConfig(
            dendrites=pb.DendriteConfig(max_sets=0), recovery=self.recipe.train
        )
        pb.recover_(self.model, self.data, config=base, seed=self.recipe.seed, stage="base")
        splits = {"base_val": self.data.val, "base_test": self.data.test}
        self.scores = {
            name: pb.evaluate(self.model, split, pb.Task())[0] for name, split in splits.items()
        }

    def compressed(self, allocation: str, size: int) -> dict[str, Any]:
        """Return the line of one call of `compress`."""
        choices = self.recipe.config
        config = replace(choices, width=replace(choices.width, allocation=allocation), deploy=False)
        result = pb.compress(
            self.model, size, data=self.data, config=config, seed=self.recipe.seed, progress=False
        )
        cost, score = result.cost_after, result.score_after
        assert score is not None
        return {
            "seed": self.recipe.seed,
            "allocation": allocation,
            "size": size,
            "widths": [layer.width for layer in cost.by_layer.values()][:3],
            "params": cost.params,
            "flops": cost.flops,
            "val": score.val,
            "test": score.test,
            **self.scores,
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not yet there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lines", type=Path, help="file of lines, made or added to")
    parser.add_argument("--folder", default="data", help="where the data sets are")
    parser.add_argument("--seeds", nargs="+", type=int, default=range(3))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    lines = read_lines(options.lines)
    done = {(line["allocation"], line["size"], line["seed"]) for line in lines}
    bases: dict[int, Base] = {}
    for job in JOBS:
        for seed in options.seeds:
            if (*job, seed) in done:
                continue
            if seed not in bases:
                changes = {
                    "compress.seed": seed,
                    "data.arguments.seed": seed,
                    "data.arguments.folder": options.folder,
                }
                bases[seed] = Base(Recipe.read(RECIPE, changes=changes))
            append_line(options.lines, bases[seed].compressed(*job))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
