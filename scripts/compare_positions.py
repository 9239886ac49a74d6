"""What candidates miss that look at some positions only: |r| over all positions after the phase.

For every seed one network is trained, and one dendrite phase is run with all positions and with
windows (``Correlation.samples``), on the same batches. Then the candidates rest, and r is taken
over all positions of all training images. One line of JSON for each run.

    python scripts/compare_positions.py lines.jsonl --folder data --seeds 5
    python scripts/compare_positions.py lines.jsonl --table >> docs/benchmarks/positions.md
"""

import argparse
import copy
import dataclasses
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from paired import paired
from torch import nn
from torch.nn.functional import cross_entropy

import pbcompress as pb
from model_zoo import create_model
from model_zoo.datasets import load_loaders
from pbcompress.dendrites.correlation import mean_scores, node_scores
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.recovery.replay import Replay
from pbcompress.training.batch_statistics import Sample

STEPS = 160
FORMS = ("full", "shared")
# Samples of a step (0: all positions of a batch), and rows drawn once (0: none, each step passes
# through the network).
WHOLE = (0, 0)
ARMS = (WHOLE, (4096, 0), (1024, 0), (4096, 131_072), (2048, 131_072), (4096, 16_384))


def run(
    model: nn.Module, data: pb.Data, form: str, samples: int, rows: int, seed: int
) -> dict[str, Any]:
    """Run one dendrite phase; return the mean |r| of each layer and the time of a step."""
    dendrites = pb.DendriteConfig(rule=pb.Correlation(samples=samples), form=form)
    growth = pb.cycles(model, config=pb.CompressConfig(dendrites=dendrites), seed=seed)
    phase = next(growth)
    phase.report(0.0)  # the network is trained: no step is made
    while phase.kind is pb.PhaseKind.NEURON:
        phase = next(growth)
        if phase.kind is pb.PhaseKind.NEURON:
            phase.report(0.0)
    optimizer = torch.optim.AdamW(phase.parameters(), lr=3e-3, weight_decay=0)
    torch.manual_seed(seed)
    started = time.perf_counter()
    if rows:
        count = len(data.train)  # type: ignore[arg-type]
        shares = dict.fromkeys(dendrite_layers(model), rows)
        replay = Replay(model, Sample(data.train, pb.Task(), count, seed), shares)
    drawn = time.perf_counter() - started
    phase.train()
    done, started = 0, time.perf_counter()
    if rows:
        replay.epoch(optimizer, lambda _: None, steps=STEPS, seed=(seed,))
    while not rows and done < STEPS:
        for x, y in data.train:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            done += 1
            if done == STEPS:
                break
    seconds = (time.perf_counter() - started) / STEPS
    return {
        "seconds_per_step": round(seconds, 5),
        "seconds_first": round(drawn, 3),
        "r": correlations(model, data.train),
        "r_val": correlations(model, data.val),
    }


def correlations(model: nn.Module, batches: Any) -> dict[str, float]:
    """Return the mean |r| of each layer's candidates at rest, over all positions."""
    layers = dendrite_layers(model)
    for layer in layers.values():
        layer.config = dataclasses.replace(layer.config, rule=pb.Correlation(samples=0))
        layer.begin_candidacy()
        layer.dendrites.eval()
    for x, y in batches:
        cross_entropy(model(x), y).backward()
    scores = {name: layer.summed_scores() for name, layer in layers.items()}
    return {
        n: float(node_scores(mean_scores(s)).mean()) for n, s in scores.items() if s is not None
    }


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Return |r| beside that of candidates that look at all positions, by form and layer."""
    out = ["| form | samples of a step | rows in memory | layer | mean r | held out | difference |"]
    out += ["| --- | --- | --- | --- | --- | --- | --- |"]
    by = {(t["form"], t["samples"], t["rows"], t["seed"]): t for t in lines}
    seeds = sorted({t["seed"] for t in lines})
    for form, (samples, rows) in itertools.product(FORMS, ARMS):
        for layer in by[form, *WHOLE, seeds[0]]["r"]:
            own, held = (
                {s: by[form, samples, rows, s][key][layer] for s in seeds} for key in ("r", "r_val")
            )
            whole = {s: by[form, *WHOLE, s]["r_val"][layer] for s in seeds}
            gap = paired(held, whole)
            beside = f"{gap.mean:+.4f} ± {gap.half:.4f}" if (samples, rows) != WHOLE else ""
            step, drawn = (f"{n:,}" if n else word for n, word in ((samples, "all"), (rows, "")))
            out.append(
                f"| {form} | {step} | {drawn} | {layer} | {mean(own.values()):.4f} "
                f"| {mean(held.values()):.4f} | {beside} |"
            )
    return "\n".join(out) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not there yet, or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lines", type=Path)
    parser.add_argument("--folder", default="data", help="where fetch_data.py put the data set")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args(argv)
    if options.table:
        print(table([json.loads(line) for line in options.lines.read_text().splitlines()]))
        return 0
    torch.set_num_threads(1)
    loaders = load_loaders("fashion_mnist", options.folder, num_val=2000, train_limit=6000)
    data = pb.Data(loaders.train, loaders.val)
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        model = create_model("small_cnn", widths=(8, 16, 16), pool=True)
        off = pb.DendriteConfig(max_sets=0)
        base = pb.CompressConfig(dendrites=off, recovery=pb.RecoveryConfig(epochs=4))
        pb.recover_(model, data, seed=seed, config=base)
        for form in FORMS:
            for samples, rows in ARMS:
                line = {"form": form, "samples": samples, "rows": rows, "seed": seed}
                line |= run(copy.deepcopy(model), data, form, samples, rows, seed)
                with options.lines.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
