"""What is left of a small language model: right after the cut, fitted without labels, recovered?

A GPT-2 of two blocks is trained on news stories (Reuters R8, the 255 words that most stories
have), and compressed to half and to a quarter of its parameters. One JSON line for each seed,
target and arm; a line that is there is passed over, so that a stopped run can go on.

    python -m scripts.language.run lines.jsonl --folder data

Arms: "cut" is the narrowed network as it is; "fitted" that of ``compress(model, target,
data=batches)``, which sees tokens and trains nothing; "recovered" that of ``compress`` with
`Task.causal_lm`; "kl" and "dist" the same with half of the loss from the original. Validation
decides, test is scored once. transformers is needed.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import pbcompress as pb
from model_zoo.datasets.load import load_dataset
from scripts.lines import append_line, read_lines

ARMS = ("cut", "fitted", "recovered", "kl", "dist")
TARGETS = (0.5, 0.25)
SEEDS = (120, 121, 122)
SIZES = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 48, "vocab_size": 256}
EPOCHS, RECOVERY = 8, 4
BATCH, HELD_OUT = 64, 485  # stories
FILL = 0  # after the end of a story


def batches_of(stories: Tensor, seed: int | None = None) -> list[dict[str, Tensor]]:
    """Return batches of tokens with the mask of those that are words, shuffled by a seed."""
    if seed is not None:
        order = torch.randperm(len(stories), generator=torch.Generator().manual_seed(seed))
        stories = stories[order]
    stories = stories[(stories != FILL).sum(1) > 1]
    return [
        {"input_ids": own, "attention_mask": (own != FILL).long()} for own in stories.split(BATCH)
    ]


def data_of(folder: Path, seed: int) -> pb.Data:
    """Return the splits: the held-out stories are others for each seed."""
    read = load_dataset("reuters_r8", folder)
    train = read.train_images.flatten(1).long()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    held, rest = train[order[:HELD_OUT]], train[order[HELD_OUT:]]
    test = batches_of(read.test_images.flatten(1).long())
    return pb.Data(batches_of(rest, seed), batches_of(held), test)


def trained(data: pb.Data, seed: int) -> nn.Module:
    """Return the original network."""
    torch.manual_seed(seed)
    tokens = {"bos_token_id": 1, "eos_token_id": 1}
    model = GPT2LMHeadModel(GPT2Config(**SIZES, **tokens))
    config = pb.CompressConfig(recovery=pb.RecoveryConfig(epochs=EPOCHS))
    pb.recover_(model, data, pb.Task.causal_lm(), config=config, seed=seed)
    return model.eval()


def network_of(arm: str, model: nn.Module, target: float, data: pb.Data, seed: int) -> nn.Module:
    """Return the small network of an arm."""
    task, example = pb.Task.causal_lm(), {"input_ids": data.train[0]["input_ids"][:1]}
    if arm == "cut":
        return pb.shrink(model, pb.plan_widths(model, example, target))
    shared: dict[str, Any] = {"task": task, "seed": seed, "progress": False}
    if arm == "fitted":
        return pb.compress(model, target, data=data.train, **shared).model
    learned = pb.DistillationConfig(share=0.5, loss=arm) if arm in ("kl", "dist") else None
    recovery = pb.RecoveryConfig(epochs=RECOVERY)
    if learned is not None:
        recovery = pb.RecoveryConfig(epochs=RECOVERY, distillation=learned)
    splits = pb.Data(data.train, data.val)
    return pb.compress(model, target, data=splits, config=recovery, **shared).model


def scores(network: nn.Module, data: pb.Data) -> dict[str, float]:
    """Return the perplexity of validation and test."""
    task = pb.Task.causal_lm()
    return {name: pb.evaluate(network, getattr(data, name), task)[0] for name in ("val", "test")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what has no line yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", type=Path, help="file of lines, made or added to")
    parser.add_argument("--folder", type=Path, default=Path("data"), help="of the data sets")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    done = {(line["seed"], line["target"], line["arm"]) for line in read_lines(args.lines)}
    for seed in args.seeds:
        cells = [(t, arm) for t in TARGETS for arm in args.arms if (seed, t, arm) not in done]
        if not cells:
            continue
        data = data_of(args.folder, seed)
        model = trained(data, seed)
        original = {"params": pb.measure(model, data.val[0]).params, **scores(model, data)}
        for target, arm in cells:
            started = time.process_time()
            network = network_of(arm, model, target, data, seed)
            seconds = round(time.process_time() - started, 1)
            line = {"seed": seed, "target": target, "arm": arm, "seconds": seconds}
            params = sum(p.numel() for p in network.parameters())
            found = {"params": params, **scores(network, data), "original": original}
            append_line(args.lines, line | found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
