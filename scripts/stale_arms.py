"""Arms of `compare_stale.py`: when which dendrites of a network grow, and how they stay fresh.

An arm is a list of steps, each a kind and its epochs, run by a loop that takes as many optimizer
steps for each of them, with a fresh AdamW and a schedule of its own for each step as in `recover_`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import pbcompress as pb
from pbcompress.core.modules import replace_module
from pbcompress.dendrites.correlation import R
from pbcompress.dendrites.forms import growable_layers
from pbcompress.dendrites.layer import DendriteLayer, dendrite_layers, neuron_parameters
from pbcompress.dendrites.nodes import BatchNorm
from pbcompress.recovery.node_scores import NodeScores
from pbcompress.recovery.node_selection import accept_
from pbcompress.recovery.replay import Replay
from pbcompress.training.batch_statistics import Sample
from pbcompress.training.distillation import make_objective
from pbcompress.training.engine import Engine
from pbcompress.training.loop import evaluate, lr_factor, make_optimizer, train_epoch

__all__ = ["ARMS", "Arm", "N", "train"]

Step = tuple[str, int]
FIRM = 1e6  # a sum of r that no batch turns


@dataclass(frozen=True)
class Arm:
    """What happens, in order.

    Attributes:
        steps: Kinds and epochs. "neuron" trains neurons and U; "refit" too, and measures the norms
            of dendrites anew before each epoch; "thaw" trains everything. "dendrite" grows a set on
            all layers, "early" on the first half of them and "late" on the other; "again" trains an
            accepted set by correlation a second time.
        initialization: First weights of candidates.
        samples: ``Correlation.samples``.
        replays: Whether dendrites train on rows in memory.
    """

    steps: tuple[Step, ...]
    initialization: str = "random"
    samples: int = 4096
    replays: bool = False


N, D = "neuron", "dendrite"
PLAIN = ((N, 9), (D, 4), (N, 9))
HALF = ((N, 7), (D, 4), (N, 7), ("thaw", 4))
ARMS = {
    "": Arm(PLAIN),
    "thaw of 2": Arm(((N, 8), (D, 4), (N, 8), ("thaw", 2))),
    "thaw of 4": Arm(HALF),
    "thaw of 6": Arm(((N, 6), (D, 4), (N, 6), ("thaw", 6))),
    "pause": Arm(((N, 9), (D, 4), (N, 4), (N, 5))),
    "early layers first": Arm(((N, 9), ("early", 2), (N, 4), ("late", 2), (N, 5))),
    "late layers first": Arm(((N, 9), ("late", 2), (N, 4), ("early", 2), (N, 5))),
    "correlated again": Arm(((N, 9), (D, 2), (N, 4), ("again", 2), (N, 5))),
    "norms re-fitted": Arm(((N, 9), (D, 4), ("refit", 9))),
    "spectral": Arm(PLAIN, initialization="spectral"),
    "spectral, thaw of 4": Arm(HALF, initialization="spectral"),
    "all positions": Arm(PLAIN, samples=0),
    "from memory": Arm(PLAIN, replays=True),
}


def train(model: nn.Module, data: pb.Data, arm: Arm, form: pb.DendriteConfig, seed: int) -> int:
    """Run an arm in place; return its optimizer steps.

    The model ends with its best validation score after the last growth.
    """
    total, best = 0, (-1.0, model.state_dict())
    trainer = _Trainer(model, data, arm, seed)
    form = replace(form, rule=pb.Correlation(samples=arm.samples))
    for number, (kind, epochs) in enumerate(arm.steps):
        if kind in _PARTS or kind == "again":
            accept = trainer.grow(kind, form, number)
            for epoch in range(epochs):
                total += trainer.epoch(number, kind, epoch, epochs)
                trainer.scores.take(trainer.candidates)
            accept()
            best = (-1.0, best[1])
            continue
        trainer.begin(kind)
        for epoch in range(epochs):
            total += trainer.epoch(number, kind, epoch, epochs)
            score = evaluate(model, data.val, pb.Task())[0]
            if score > best[0]:
                best = (score, {k: v.clone() for k, v in model.state_dict().items()})
        model.load_state_dict(best[1])
    return total


_PARTS: dict[str, Callable[[Sequence[str]], Sequence[str]]] = {
    "dendrite": lambda names: names,
    "early": lambda names: names[: len(names) // 2],
    "late": lambda names: names[len(names) // 2 :],
}


class _Trainer:
    def __init__(self, model: nn.Module, data: pb.Data, arm: Arm, seed: int) -> None:
        self.model, self.data, self.arm, self.seed = model, data, arm, seed
        self.neurons = list(neuron_parameters(model).values())
        self.layers = growable_layers(model, pb.DendriteConfig())
        self.config = pb.RecoveryConfig()
        self.objective = make_objective(pb.Task(), self.config.distillation, None)
        self.scores = NodeScores(0.1)
        self.candidates: dict[str, DendriteLayer] = {}
        self.replay: Replay | None = None

    def begin(self, kind: str) -> None:
        """Say who trains in a step without candidates."""
        self._start(dendrites=False)
        for parameter in self.neurons:
            parameter.requires_grad_(True)
        for layer in dendrite_layers(self.model).values():
            layer.gains.requires_grad_(True)
            layer.freeze(0 if kind == "thaw" else layer.num_sets)

    def grow(self, kind: str, form: pb.DendriteConfig, number: int) -> Callable[[], None]:
        """Begin a dendrite phase; return what ends it."""
        for parameter in [*self.neurons, *self._gains()]:
            parameter.requires_grad_(False)
        names = list(dendrite_layers(self.model))
        if kind != "again":
            names = list(_PARTS[kind](list(self.layers)))
            for name in names:
                base = self.model.get_submodule(name)
                grown = DendriteLayer(base, form, normalized=self.layers[name])
                replace_module(self.model, name, grown)
        layers = dendrite_layers(self.model)
        for name, layer in layers.items():
            layer.freeze(layer.num_sets)
            if name in names:
                layer.add_set(seed=(self.seed, name, number))
                layer.gains[-1].requires_grad_(False)
                layer.freeze(layer.num_sets - 1)
        self.candidates = {name: layers[name] for name in names}
        for layer in self.candidates.values():
            layer.begin_candidacy()
            if kind == "again":
                _copy_(layer.dendrites[0], layer.dendrites[1])
                layer.links[1].requires_grad_(False)  # the copy hears nothing of the set itself
                _hold_signs_(layer)
        if self.arm.initialization == "spectral":
            pb.initialize_candidates_(self.model, self.data.train, seed=self.seed)
        if self.arm.replays:
            self.replay = Replay.within(self.model, self._train_split(), self.config.replay)
            assert self.replay is not None
        self.scores.begin()
        self._start(dendrites=True)
        return self._take_again if kind == "again" else self._accept

    def _train_split(self) -> Sample:
        return Sample(self.data.train, pb.Task(), len(self.data.train), self.seed)  # type: ignore[arg-type]

    def _accept(self) -> None:
        self.replay = None
        accept_(self.candidates, self.scores.latest)

    def _take_again(self) -> None:
        for layer in self.candidates.values():
            _copy_(layer.dendrites[1], layer.dendrites[0])
            layer.remove_set()

    def _gains(self) -> Iterator[nn.Parameter]:
        for layer in dendrite_layers(self.model).values():
            yield from layer.gains

    def _start(self, *, dendrites: bool) -> None:
        self.optimizer: torch.optim.Optimizer | None = None
        self.dendrites = dendrites

    def epoch(self, number: int, kind: str, epoch: int, epochs: int) -> int:
        """Train one epoch; return its optimizer steps."""
        if self.optimizer is None:
            trained = [p for p in self.model.parameters() if p.requires_grad]
            self.optimizer = make_optimizer(
                trained, self.config.optimizer, is_dendrite=self.dendrites
            )
        peak = self.config.optimizer.lr  # of dendrites too: the defaults are alike
        if kind == "refit":
            self._measure_norms()
        self.model.train(not self.dendrites)
        if self.dendrites:
            for layer in self.candidates.values():
                layer.dendrites[-1].train()

        def set_lr(done: float) -> None:
            for group in self.optimizer.param_groups if self.optimizer else ():
                part = min((epoch + done) / epochs, 1.0)
                group["lr"] = peak * lr_factor(self.config.optimizer, part)

        if self.replay is not None:
            steps = len(self.data.train)  # type: ignore[arg-type]
            seed = (self.seed, number, epoch)
            return self.replay.epoch(self.optimizer, set_lr, steps=steps, seed=seed)[1]
        return train_epoch(
            Engine(), self.model, self.data.train, self.objective, self.optimizer, set_lr,
            lambda factor: None, seed=(self.seed, number, epoch), config=self.config,
        )[1]  # fmt: skip

    def _measure_norms(self, batches: int = 8) -> None:
        """Measure what the norms of frozen dendrites see now, without a training step."""
        norms = [
            m
            for layer in dendrite_layers(self.model).values()
            for m in layer.dendrites.modules()
            if isinstance(m, BatchNorm)
        ]
        self.model.eval()
        for norm in norms:
            norm.train().reset_running_stats()
            norm.momentum = None  # a plain mean
        with torch.no_grad():
            for (x, _), _ in zip(self.data.train, range(batches), strict=False):
                self.model(x)
        for norm in norms:
            norm.momentum = 0.1


def _copy_(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict(source.state_dict())


def _hold_signs_(layer: DendriteLayer) -> None:
    """Let a copy of an accepted set, whose U stays, pull the way that lowers the loss by it."""
    assert layer.candidate is not None
    grad: Tensor = torch.zeros_like(layer.candidate)
    grad[R] = -FIRM * layer.gains[0].detach().sign()
    layer.candidate.grad = grad
