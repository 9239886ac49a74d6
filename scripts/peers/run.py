r"""Two other toolkits on tasks of `scripts/accuracy`: same network, data, steps and final size.

An environment of its own, because perforatedai declares packages that it does not need here:

    python -m venv peer && printf 'torch==2.13.0\n' > constraints.txt
    peer/bin/pip install -c constraints.txt torch==2.13.0 -e '.[report,zoo]' pandas
    peer/bin/pip install --no-deps perforatedai==3.2.9
    peer/bin/python -m scripts.peers.run lines.jsonl --folder data
    gzip -9nc lines.jsonl > scripts/peers/lines.jsonl.gz && python -m scripts.accuracy.tables peers

*torch-pruning* is its own `BasePruner` (magnitude, one step, the same share in every layer), with
the share chosen so that the target is filled, and then the fine-tuning of the arm "width".
*perforatedai* prunes nothing: it gets the planner's network of half the size, trains it by its
gradient mode with a fixed switch at half of the epochs, and then has one dendrite for every neuron.
"""

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pbcompress as pb
from pbcompress.core.randomness import seeded
from pbcompress.pruning.shrinking import shrink
from pbcompress.training.batch_statistics import reestimate_batchnorm_
from scripts.accuracy.grid import ARMS, OFF
from scripts.accuracy.run import Bench, cell_of, parser_of, run_cells, train

TASKS = ("digits_mlp", "watch_cnn")
OURS = ("width", "auto")
LR = 3e-3  # of RecoveryConfig


def torch_pruning(bench: Bench, target: float) -> dict[str, Any]:
    """Prune by torch-pruning to the target, and fine-tune as the arm "width" does."""
    bound = int(target * pb.measure(bench.model, bench.example).params)
    low, high, network = 0.0, 1.0, None
    for _ in range(12):  # the largest network within the bound
        ratio = (low + high) / 2
        found = _pruned(bench, ratio)
        if pb.measure(found, bench.example).params <= bound:
            high, network = ratio, found
        else:
            low = ratio
    assert network is not None
    reestimate_batchnorm_(network, bench.data, pb.Task(), seed=bench.seed)
    lengths = [bench.task.epochs]
    steps = train(network, bench.data, OFF, lengths, bench.seed)
    cost = pb.measure(network, bench.example)
    facts = {"params": cost.params, "flops": cost.flops, "sets": 0}
    return {"steps": steps, **facts, **bench.score(network)}


def _pruned(bench: Bench, ratio: float) -> nn.Module:
    import torch_pruning as tp

    network = deepcopy(bench.model)
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    pruner = tp.pruner.BasePruner(
        network,
        bench.example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[last],
    )
    pruner.step()
    return network


def perforatedai(bench: Bench, target: float) -> dict[str, Any]:
    """Train the planner's network of half the target with one set of perforatedai."""
    bound = int(target * pb.measure(bench.model, bench.example).params)
    config = pb.CompressConfig(width=pb.WidthConfig(allocation="uniform"), dendrites=OFF)
    plan = pb.plan_widths(bench.model, bench.example, bound // 2, config=config)
    network = shrink(bench.model, plan)
    reestimate_batchnorm_(network, bench.data, pb.Task(), seed=bench.seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        _quiet_in(folder),
        seeded("perforatedai", bench.name, bench.seed),
    ):
        trained, cleaned, steps = _perforated(bench, network)
    # each node is there twice, and fvcore does not see the second one
    facts = {"params": _size(cleaned), "flops": 2 * plan.cost_after.flops, "sets": 1}
    assert facts["params"] <= bound
    return {"steps": steps, **facts, **bench.score(trained)}


def _perforated(bench: Bench, network: nn.Module) -> tuple[nn.Module, nn.Module, int]:
    """Return the network as trained, as cleaned by the package, and the number of steps."""
    from perforatedai import globals_perforatedai as gpa
    from perforatedai import utils_perforatedai as upa

    epochs, half = bench.task.epochs, bench.task.epochs // 2
    for name, value in {
        "configuration_confirmed": True,
        "unwrapped_modules_confirmed": True,
        "testing_dendrite_capacity": False,  # its self-test
        "weight_decay_accepted": True,
        "silent": True,
        "use_cuda": False,
        "device": torch.device("cpu"),
        "max_dendrites": 1,
        "switch_mode": gpa.pc.DOING_FIXED_SWITCH,
        "fixed_switch_num": half,
        "first_fixed_switch_num": half,
    }.items():
        getattr(gpa.pc, f"set_{name}")(value)
    join_norms_(network, gpa.PAISequential)
    network = upa.perforate_model(
        network, save_name="peer", making_graphs=False, maximizing_score=True
    )
    tracker, steps = gpa.pai_tracker, 0
    tracker.set_optimizer(torch.optim.AdamW)
    tracker.set_scheduler(torch.optim.lr_scheduler.CosineAnnealingLR)
    optimizer, best, chosen = _optimizer(tracker, network, half), -1.0, None
    for _ in range(epochs):
        network.train()
        for inputs, labels in bench.data.train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
            steps += 1
        score = pb.evaluate(network, bench.data.val, pb.Task())[0]
        if tracker.member_vars["num_dendrites_added"] and score > best:
            best, chosen = score, deepcopy(network)
        network, restructured, _ = tracker.add_validation_score(score, network)
        if restructured:
            optimizer = _optimizer(tracker, network, epochs - half)
    assert chosen is not None  # an arm without its set would be half as large
    return chosen, upa.prepare_final_model(deepcopy(chosen)), steps


def join_norms_(network: nn.Module, sequential: Any) -> None:
    """Make one module of a layer and the norm behind it, as the package asks for."""
    for parent in list(network.modules()):
        names = list(parent._modules)
        for first, second in pairwise(names):
            layer, norm = parent._modules[first], parent._modules[second]
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                parent._modules[first] = sequential([layer, norm])
                parent._modules[second] = nn.Identity()


def _optimizer(tracker: Any, network: nn.Module, epochs: int) -> Any:
    rates = {"params": network.parameters(), "lr": LR, "weight_decay": 1e-4}
    optimizer, _ = tracker.setup_optimizer(network, rates, {"T_max": max(epochs, 1)})
    return optimizer


@contextlib.contextmanager
def _quiet_in(folder: str) -> Any:
    """The package prints, and writes into the current folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.chdir(before)


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


PEERS: dict[str, Callable[[Bench, float], dict[str, Any]]] = {
    "torch-pruning": torch_pruning,
    "perforatedai": perforatedai,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cells that are asked for and not yet there."""
    parser = parser_of(__doc__, tasks=TASKS, targets=[0.25], seeds=range(3))
    run_cells(parser.parse_args(argv), list(TASKS), [*OURS, *PEERS], _line)
    return 0


def _line(bench: Bench, arm: str, target: float) -> dict[str, Any]:
    if arm in ARMS:
        return cell_of(bench, arm, target)
    started = time.perf_counter()
    found = PEERS[arm](bench, target)
    return bench.line(arm, target, found | {"seconds": round(time.perf_counter() - started, 1)})


if __name__ == "__main__":
    raise SystemExit(main())
