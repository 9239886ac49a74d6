"""What dendrites cost in time and memory, as ratios of one run: medians of interleaved steps.

    python -m scripts.dendrites.run train lines.jsonl       # a step against a plain step
    python -m scripts.dendrites.run absorbed lines.jsonl    # the same, of linear dendrites
    python -m scripts.dendrites.run inference lines.jsonl   # against width of the same FLOPs
    python -m scripts.dendrites.run peer lines.jsonl        # needs perforatedai beside it

``train --device cuda`` also gives images per second, in bfloat16, channels last and compiled, with
data that lie on the device.
"""

import argparse
import contextlib
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import pbcompress as pb
from model_zoo import create_model
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.recovery.policy import PhaseKind
from pbcompress.recovery.replay import Replay
from pbcompress.training.batch_statistics import Sample
from pbcompress.training.channels_last import takes_channels_last
from pbcompress.training.engine import Engine
from pbcompress.training.loop import Stepper
from scripts.lines import append_line

Step = Callable[[], None]
# Trained: network, its arguments, batch size. The second has widths of 64 to 256.
TRAINED = (
    ("resnet20", {}, 64),
    ("resnet20", {"width": 4.0}, 16),
    ("resnet56", {}, 32),
    ("resnet56", {}, 64),
    ("text_transformer", {"width": 128}, 64),
    ("text_transformer", {"width": 128}, 256),
    ("mlp", {"in_features": 3072}, 128),
)
# Of linear dendrites; the last is so small that calls cost more than sums.
ABSORBED = (*TRAINED[:1], TRAINED[4], TRAINED[6], ("mlp", {"in_features": 16}, 128))
FORMS = ("full", "grouped", "lowrank", "shared", "tied")
EPOCHS = pb.RecoveryConfig().dendrite_epochs
INFERRED = (("resnet20", {}), ("resnet20", {"width": 4.0}))
# Beside the peer: network, shape of an image, batch size, batches of an epoch, numbers of sets.
PEERED = (
    ("small_cnn", (1, 28, 28), 64, 16, (1, 2, 3)),
    ("small_cnn", (1, 28, 28), 64, 64, (1,)),
    ("resnet20", (3, 32, 32), 32, 8, (1,)),  # with a second set too few rows fit
)


def images(batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Return random images of CIFAR's shape, and classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, 32, 32, generator=generator)
    return x.to(device), torch.randint(10, (batch,), generator=generator).to(device)


def inputs_of(name: str, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Return a random batch for a network of `TRAINED`."""
    x, y = images(batch, device)
    if name != "text_transformer":
        return x, y
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (batch, 48), generator=generator).to(device), y % 8


def phase_of(model: nn.Module, kind: PhaseKind, form: str, sets: int) -> pb.cycles:
    """Return a growth in a phase of a kind, with ``sets`` sets, a candidate included."""
    config = pb.CompressConfig(
        dendrites=pb.DendriteConfig(form=form, max_sets=sets),
        recovery=pb.RecoveryConfig(epochs=1, dendrite_epochs=1),
    )
    growth, score = pb.cycles(model, config=config), 0.0
    for phase in growth:
        if phase.kind is kind and phase.sets == sets:
            phase.train()
            return growth
        score += 1
        phase.report(score)
    raise AssertionError("the growth ended before that phase")


def stepper(model: nn.Module, x: Tensor, y: Tensor, *, fast: bool, laid: bool) -> Step:
    """Return one training step: forward, backward, SGD with momentum.

    Args:
        model: Trains.
        x: Images.
        y: Classes.
        fast: In bfloat16, and compiled.
        laid: On images in channels-last memory, as `recover_` has them.
    """
    images = [model] if laid else []
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 1e-6, momentum=0.9)
    run = torch.compile(model) if fast else model

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with (
            torch.autocast(x.device.type, torch.bfloat16, enabled=fast),
            takes_channels_last(*images),
        ):
            loss = cross_entropy(run(x), y)
        loss.backward()
        optimizer.step()

    return step


def seconds(things: dict[str, Step], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Time things in turn, after one call of each that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in things}
    for number in range(rounds + 1):
        for name, thing in things.items():
            started = time.perf_counter()
            thing()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                taken[name].append(time.perf_counter() - started)
    return taken


def ratio(own: list[float], other: list[float]) -> float:
    """Return the median of ratios of neighbours."""
    return round(statistics.median(a / b for a, b in zip(own, other, strict=True)), 3)


def saved_bytes(step: Step) -> int:
    """Return the bytes of the tensors that autograd keeps for one backward pass, each once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept.values())


def train(rounds: int, device: str) -> Iterator[dict[str, Any]]:
    """Yield the cost of a step in each phase and form, plain steps being one."""
    fast = device == "cuda"
    for name, arguments, batch in TRAINED:
        torch.manual_seed(0)
        base = create_model(name, **arguments).to(device)
        x, y = inputs_of(name, batch * (16 if fast else 1), device)
        cases = [(PhaseKind.DENDRITE, form, 1) for form in FORMS]
        cases += [(PhaseKind.NEURON, "full", sets) for sets in (1, 2, 3)]
        cases += [(PhaseKind.NEURON, form, 1) for form in FORMS[1:]]
        models = [copy.deepcopy(base) for _ in cases]
        growths = [phase_of(m, *case) for m, case in zip(models, cases, strict=True)]
        assert len(growths) == len(cases)
        networks = {"plain": copy.deepcopy(base).train()}
        networks |= {" ".join(map(str, c)): m for c, m in zip(cases, models, strict=True)}
        layouts = (True,) if fast else (False, True) if _has_images(base) else (False,)
        steps = {
            laid: {k: stepper(m, x, y, fast=fast, laid=laid) for k, m in networks.items()}
            for laid in layouts
        }
        kept = {} if fast else {key: saved_bytes(step) for key, step in steps[False].items()}
        taken = {laid: seconds(own, rounds, device) for laid, own in steps.items()}
        for key in networks:
            line = {"job": "train", "network": name, **arguments, "batch": len(x), "case": key}
            ratios = {laid: ratio(own[key], own["plain"]) for laid, own in taken.items()}
            medians = {laid: statistics.median(own[key]) for laid, own in taken.items()}
            line["ratio"] = ratios[layouts[0]]
            if fast:
                line["device"] = torch.cuda.get_device_name()
                line["images_per_second"] = round(len(x) / medians[True])
                yield line
                continue
            line["memory"] = round(kept[key] / kept["plain"], 3)
            if True in layouts:
                line["ratio in channels last"] = ratios[True]
                line["time in channels last"] = round(medians[True] / medians[False], 3)
            yield line


def absorbed(rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the cost of a step with one set of linear dendrites, plain steps being one."""
    for name, arguments, batch in ABSORBED:
        torch.manual_seed(0)
        base = create_model(name, **arguments).train()
        x, y = inputs_of(name, batch, "cpu")
        if "in_features" in arguments:
            x = x.flatten(1)[:, : arguments["in_features"]]
        networks = {
            "plain": base,
            "one map": _linear(base, normalize=False),
            "branches": _branching(_linear(base, normalize=False)),
            "branches with norms": _linear(base, normalize=True),
        }
        laid = _has_images(base)
        steps = {k: stepper(m, x, y, fast=False, laid=laid) for k, m in networks.items()}
        taken = seconds(steps, rounds)
        about = {"job": "absorbed", "network": name, **arguments, "batch": batch}
        yield about | {key: ratio(own, taken["plain"]) for key, own in taken.items()}


def _linear(base: nn.Module, *, normalize: bool) -> nn.Module:
    """Return a copy with one set of linear dendrites that trains with all the rest."""
    grown = copy.deepcopy(base)
    config = pb.DendriteConfig(rule="gradient", activation="linear", normalize=normalize)
    pb.attach_dendrites_(grown, config)
    for parameter in grown.parameters():
        parameter.requires_grad_(parameter.numel() > 0)
    return grown.train()


def _branching(grown: nn.Module) -> nn.Module:
    """Make dendrites run beside their layers: what has a hook is not summed up."""
    for layer in dendrite_layers(grown).values():
        for branch in layer.dendrites:
            branch.register_forward_hook(lambda *_: None)
    return grown


def _has_images(network: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) for module in network.modules())


def inference(rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the latency of full dendrites against width alone of the same FLOPs, both fused."""
    from pbcompress.onnx_files.session import Session

    for name, arguments in INFERRED:
        for sets in (1, 2):
            torch.manual_seed(0)
            grown = create_model(name, **arguments).eval()
            for _ in range(sets):
                pb.attach_dendrites_(grown)
            for layer in grown.modules():
                if isinstance(layer, pb.DendriteLayer):
                    for gain in layer.gains:
                        nn.init.normal_(gain, std=0.1)
            x, _ = images(1, "cpu")
            flops = pb.measure(pb.fuse(grown), x).flops
            factor = arguments.get("width", 1.0) * (1 + sets) ** 0.5
            sizes = (factor * f for f in (0.96, 0.98, 1.0, 1.02, 1.04))
            wide = min(
                (create_model(name, width=size).eval() for size in sizes),
                key=lambda model: abs(pb.measure(model, x).flops - flops),
            )
            networks = {"dendrites": pb.fuse(grown), "width": pb.fuse(wide)}
            with tempfile.TemporaryDirectory() as folder, torch.no_grad():
                runs: dict[str, Step] = {}
                for key, network in networks.items():
                    path = Path(folder) / f"{key}.onnx"
                    report = pb.export_onnx(network, path, x)
                    session, feeds = Session(path), {report.input_names[0]: x.numpy()}
                    runs[f"{key} onnx"] = lambda s=session, f=feeds: s.run(f)
                    for batch in (1, 32):
                        many = x.repeat(batch, 1, 1, 1)
                        runs[f"{key} torch {batch}"] = lambda n=network, m=many: n(m)
                taken = seconds(runs, rounds)
            yield {
                "job": "inference", "network": name, **arguments, "sets": sets,
                "flops": round(flops / pb.measure(wide, x).flops, 3),
                **{
                    where: ratio(taken[f"dendrites {where}"], taken[f"width {where}"])
                    for where in ("onnx", "torch 1", "torch 32")
                },
            }  # fmt: skip


def peered(name: str) -> nn.Module:
    """Return a network that the peer takes as it is: its own small CNN has no norm layers."""
    torch.manual_seed(0)
    if name != "small_cnn":
        return create_model(name)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip


def peer(rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the time of our epochs over the peer's, with the same sets, batches and optimizer.

    A growth of ours has dendrite phases too, here as long as the neuron phases; the peer, in its
    gradient mode, has none. So our two kinds of epoch are timed alone and as their mean. A dendrite
    phase from memory is timed as a whole, the pass that draws its rows included, and once more with
    first weights in closed form, which are the default; an epoch is short here. Ours run as in
    `recover_`, with images in channels-last memory; the peer runs as its examples do.
    """
    for name, shape, batch, count, numbers in PEERED:
        generator = torch.Generator().manual_seed(0)
        batches = [
            (torch.randn(batch, *shape, generator=generator), torch.randint(10, (batch,)))
            for _ in range(count)
        ]
        for sets in numbers:
            grown = {
                key: phase_of(peered(name), kind, "full", sets)
                for key, kind in (
                    ("neuron", PhaseKind.NEURON),
                    ("dendrite", PhaseKind.DENDRITE),
                    ("memory", PhaseKind.DENDRITE),
                )
            }
            epochs = {
                "peer": _epoch(_peer_network(name, sets, batches), batches, laid=False),
                "neuron": _epoch(grown["neuron"].model, batches),
                "dendrite": _epoch(grown["dendrite"].model, batches),
                "plain": _epoch(peered(name).train(), batches),
                "memory": _phase_from_memory(grown["memory"], batches),
                "spectral": _phase_from_memory(grown["memory"], batches, is_spectral=True),
            }
            line = {"job": "peer", "network": name, "batches": count, "sets": sets}
            yield line | _ratios(epochs, rounds)


def _ratios(epochs: dict[str, Step], rounds: int) -> dict[str, float]:
    taken = seconds(epochs, rounds)
    for key in ("memory", "spectral"):
        taken[key] = [whole / EPOCHS for whole in taken[key]]
    means = {
        key: [(a + b) / 2 for a, b in zip(taken["neuron"], taken[key], strict=True)]
        for key in ("dendrite", "memory", "spectral")
    }
    return {
        **{key: ratio(taken["peer"], taken[key]) for key in ("neuron", "dendrite", "memory")},
        "memory to plain": ratio(taken["memory"], taken["plain"]),
        "both": ratio(taken["peer"], means["dendrite"]),
        "both, memory": ratio(taken["peer"], means["memory"]),
        "both, spectral": ratio(taken["peer"], means["spectral"]),
    }


def _phase_from_memory(
    growth: pb.cycles, batches: list[tuple[Tensor, Tensor]], *, is_spectral: bool = False
) -> Step:
    """Return a dendrite phase of the default length: one pass, and all of its epochs."""
    parameters = growth.phase.parameters()
    optimizer = torch.optim.Adam(parameters, 1e-6)
    config = pb.RecoveryConfig(optimizer=pb.OptimizerConfig(schedule="constant"))
    stepper = Stepper(Engine(), growth.model, optimizer, config, length=EPOCHS)

    def phase() -> None:
        if is_spectral:
            pb.initialize_candidates_(growth.model, batches)
        sample = Sample(batches, pb.Task(), len(batches))
        with takes_channels_last(growth.model):
            replay = Replay.within(growth.model, sample, pb.RecoveryConfig().replay)
        assert replay is not None
        for epoch in range(EPOCHS):
            replay.epoch(stepper, steps=len(batches), seed=(epoch,))

    return phase


def _epoch(model: nn.Module, batches: list[tuple[Tensor, Tensor]], *, laid: bool = True) -> Step:
    """Return an epoch, with images in the layout that `recover_` gives them or in torch's own."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-6)

    def epoch() -> None:
        with takes_channels_last(*[model] if laid else []):
            for x, y in batches:
                optimizer.zero_grad()
                cross_entropy(model(x), y).backward()
                optimizer.step()

    return epoch


def _peer_network(name: str, sets: int, batches: list[tuple[Tensor, Tensor]]) -> nn.Module:
    from perforatedai import globals_perforatedai as settings
    from perforatedai import utils_perforatedai as tools

    settings.pc.set_configuration_confirmed(True)
    settings.pc.set_unwrapped_modules_confirmed(True)
    settings.pc.set_testing_dendrite_capacity(False)
    settings.pc.set_silent(True)
    settings.pc.set_switch_mode(settings.pc.DOING_FIXED_SWITCH)
    settings.pc.set_fixed_switch_num(1)
    settings.pc.set_first_fixed_switch_num(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        model = tools.perforate_model(peered(name), save_name="peer")
        score = 0.0
        while settings.pai_tracker.member_vars["num_dendrites_added"] < sets:
            optimizer = torch.optim.Adam(model.parameters(), 1e-6)
            settings.pai_tracker.set_optimizer_instance(optimizer)
            _epoch(model.train(), batches, laid=False)()  # it reads shapes from a backward pass
            score += 1
            model, *_ = settings.pai_tracker.add_validation_score(score, model)
    return model.train()


def main(argv: Sequence[str] | None = None) -> None:
    """Run one job."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("job", choices=["train", "absorbed", "inference", "peer"])
    parser.add_argument("lines", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = {
        "train": lambda: train(chosen.rounds, chosen.device),
        "absorbed": lambda: absorbed(chosen.rounds),
        "inference": lambda: inference(chosen.rounds),
        "peer": lambda: peer(chosen.rounds),
    }[chosen.job]()
    for line in found:
        append_line(chosen.lines, line)


if __name__ == "__main__":
    main()
