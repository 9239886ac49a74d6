"""What helps against frozen dendrites that go stale, on Fashion-MNIST at a quarter of the size.

One line of JSON for each seed and arm of `stale_arms.py`; a run that was stopped goes on. Every arm
takes as many optimizer steps, and so does width alone: 22 epochs, 4 of them of dendrites. "thaw of
T": a last phase in which everything trains, after two neuron phases of 8, 7 or 6 epochs where the
others have 9. "pause" has the second one in two parts, of 4 and 5 epochs. Between them, "early
layers first" and "late layers first" grow the other half of the layers, and "correlated again"
trains the accepted dendrites by correlation once more, with their U kept: two dendrite phases of 2
epochs in place of one of 4. "norms re-fitted" measures the BatchNorm of frozen dendrites before
each epoch. "spectral" has first weights in closed form. "all positions" lets candidates look at all
of them, and "from memory" trains them on rows that are drawn once (``RecoveryConfig.replay``).
Differences are paired over seeds, with 95 % intervals of Student's t.

    python scripts/compare_stale.py run lines.jsonl --folder data --seeds 5
    python scripts/compare_stale.py table lines.jsonl
"""

import argparse
import json
import statistics
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from paired import paired
from stale_arms import ARMS, Arm, N, train
from torch import nn

import pbcompress as pb
from model_zoo import create_model
from model_zoo.datasets import load_loaders

OFF = pb.DendriteConfig(max_sets=0)
WIDTH = Arm(((N, 9), (N, 4), (N, 9)))
FORMS = ("full", "shared")


def run(
    seed: int, folder: str, train_limit: int, names: Sequence[str], done: Collection[str]
) -> Iterator[dict[str, Any]]:
    """Yield one line for each arm that is not done yet."""
    loaders = load_loaders("fashion_mnist", folder, num_val=5000, train_limit=train_limit)
    data = pb.Data(loaders.train, loaders.val, loaders.test)
    torch.manual_seed(seed)
    model = create_model("small_cnn", widths=(16, 32, 64), first_stride=2)
    base = pb.CompressConfig(dendrites=OFF, recovery=pb.RecoveryConfig(epochs=8))
    pb.recover_(model, data, seed=seed, config=base)
    for name in [n for n in names if n not in done]:
        form, _, measure = name.partition(", ")
        grown = OFF if name == "width alone" else pb.DendriteConfig(form=form, share=1.0)
        arm = WIDTH if name == "width alone" else ARMS[measure]
        yield {"arm": name, "seed": seed} | scored(model, data, seed, grown, arm)


def scored(
    model: nn.Module, data: pb.Data, seed: int, dendrites: pb.DendriteConfig, arm: Arm
) -> dict[str, Any]:
    """Shrink, train and score one arm."""
    example = torch.zeros(1, 1, 28, 28)
    config = pb.CompressConfig(width=pb.WidthConfig(allocation="uniform"), dendrites=dendrites)
    small = pb.shrink(model, pb.plan_widths(model, example, 0.25, config=config))
    steps = train(small, data, arm, dendrites, seed)
    loss = pb.Task(metric=nn.functional.cross_entropy)
    return {
        "steps": steps, "params": pb.measure(small, example).params,
        "val": pb.evaluate(small, data.val, pb.Task())[0],
        "val_loss": pb.evaluate(small, data.val, loss)[0],
        "test": pb.evaluate(small, data.test or (), pb.Task())[0],
    }  # fmt: skip


def interval(key: str, arm: dict[int, Any], control: dict[int, Any]) -> str:
    """Return the mean difference of a score with its 95 % interval."""
    ours, theirs = ({seed: line[key] for seed, line in part.items()} for part in (arm, control))
    difference = paired(ours, theirs)
    return f"{difference.mean:+.4f} ± {difference.half:.4f}"


def control_of(name: str) -> str | None:
    """Return the arm that differs from ``name`` in one thing."""
    form, _, measure = name.partition(", ")
    if measure in {"early layers first", "late layers first", "correlated again"}:
        return f"{form}, pause"
    if measure.startswith("spectral, "):
        return name.replace("spectral, ", "")
    return form if measure else None


def table(lines: list[dict[str, Any]]) -> str:
    """Return the tables of the page."""
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for line in lines:
        by_arm.setdefault(line["arm"], {})[line["seed"]] = line
    control = by_arm["width alone"]
    out = ["| arm | seeds | parameters | steps | validation | against width alone | test, same |"]
    out += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for name, seeds in by_arm.items():
        differences = [
            interval(key, seeds, control) if name != "width alone" else ""
            for key in ("val", "test")
        ]
        mean = statistics.mean(line["val"] for line in seeds.values())
        one = next(iter(seeds.values()))
        steps = "-".join(f"{s:,}" for s in sorted({line["steps"] for line in seeds.values()}))
        out.append(
            f"| {name} | {len(seeds)} | {one['params']:,} | {steps} | {mean:.4f} "
            f"| {differences[0]} | {differences[1]} |"
        )
    out += ["", "| arm | against | validation | validation loss | test |"]
    out += ["| --- | --- | --- | --- | --- |"]
    for name, seeds in by_arm.items():
        if (other := control_of(name)) is not None:
            own = [interval(key, seeds, by_arm[other]) for key in ("val", "val_loss", "test")]
            out.append(f"| {name} | {other} | {' | '.join(own)} |")
    return "\n".join(out) + "\n"


def main() -> None:
    """Run all arms of some seeds, or print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", choices=["run", "table"])
    parser.add_argument("lines", type=Path)
    parser.add_argument("--folder", default="data", help="where fetch_data.py put the data set")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--train-limit", type=int, default=6000)
    all_arms = [f"{form}, {name}".removesuffix(", ") for form in FORMS for name in ARMS]
    parser.add_argument("--arms", nargs="+", default=["width alone", *all_arms])
    options = parser.parse_args()
    if options.job == "table":
        lines = [json.loads(line) for line in options.lines.read_text().splitlines()]
        print(table(lines), end="")
        return
    torch.set_num_threads(1)
    had = options.lines.read_text().splitlines() if options.lines.exists() else []
    done = {(line["arm"], line["seed"]) for line in map(json.loads, had)}
    with options.lines.open("a") as file:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            own = {arm for arm, of in done if of == seed}
            for line in run(seed, options.folder, options.train_limit, options.arms, own):
                file.write(json.dumps(line) + "\n")
                file.flush()


if __name__ == "__main__":
    main()
