"""Compare random with spectral first weights of candidates: |r| by step of a dendrite phase.

For every seed one network is trained and one dendrite phase is run from both beginnings, on the
same batches. The score is the mean over nodes of the absolute mean r of a window of steps. One
line of JSON for each run.

    python scripts/compare_initialization.py --folder data --seeds 5
"""

import argparse
import copy
import json
import time
from collections.abc import Sequence

import torch
from torch import nn

import pbcompress as pb
from model_zoo import create_model
from model_zoo.datasets import load_loaders
from pbcompress.dendrites.layer import dendrite_layers

WINDOW, WINDOWS = 20, 12
FORMS = ("full", "grouped", "lowrank", "shared", "tied")


def main(argv: Sequence[str] | None = None) -> int:
    """Run all forms and both beginnings for every seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="data", help="where fetch_data.py put the data set")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--forms", nargs="+", default=FORMS)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    loaders = load_loaders("fashion_mnist", options.folder, num_val=2000, train_limit=12_000)
    data = pb.Data(loaders.train, loaders.val)
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        model = create_model("small_cnn", widths=(8, 16, 16), first_stride=2)
        off = pb.DendriteConfig(max_sets=0)
        base = pb.CompressConfig(dendrites=off, recovery=pb.RecoveryConfig(epochs=8))
        pb.recover_(model, data, seed=seed, config=base)
        for form in options.forms:
            for kind in ("random", "spectral"):
                line = {"form": form, "seed": seed, "initialization": kind}
                line |= run(copy.deepcopy(model), data, form, seed, kind == "spectral")
                print(json.dumps(line), flush=True)
    return 0


def run(
    model: nn.Module, data: pb.Data, form: str, seed: int, is_spectral: bool
) -> dict[str, object]:
    """Run one dendrite phase; return |r| by window and the cost of the beginning in steps."""
    dendrites = pb.DendriteConfig(form=form)
    growth = pb.cycles(model, config=pb.CompressConfig(dendrites=dendrites), seed=seed)
    phase = next(growth)
    while phase.kind is pb.PhaseKind.NEURON:  # the network is trained: no step is made
        phase.report(0.0)
        phase = next(growth)
    started = time.perf_counter()
    if is_spectral:
        pb.initialize_candidates_(model, data.train, seed=seed)
    cost = time.perf_counter() - started
    optimizer = torch.optim.AdamW(phase.parameters(), lr=3e-3, weight_decay=0)
    phase.train()
    torch.manual_seed(seed)
    scores: list[float] = []
    sums = {name: torch.zeros(()) for name in dendrite_layers(model)}
    batches, step = iter(data.train), 0
    started = time.perf_counter()
    while len(scores) < WINDOWS:
        batch = next(batches, None)
        if batch is None:
            batches = iter(data.train)
            continue
        for parameter in phase.parameters():
            parameter.grad = None
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        step += 1
        if step % WINDOW == 0:
            now = {n: m.summed_scores() for n, m in dendrite_layers(model).items()}
            means = [float((now[n][0] - sums[n]).abs().mean()) / WINDOW for n in now]
            scores.append(round(sum(means) / len(means), 5))
            sums = {n: v[0] for n, v in now.items()}
    step_time = (time.perf_counter() - started) / step
    return {"window": WINDOW, "scores": scores, "cost_steps": round(cost / step_time, 1)}


if __name__ == "__main__":
    raise SystemExit(main())
