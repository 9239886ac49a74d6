"""What a network should learn from a batch: the task, and the outputs of the original network."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pbcompress.config.recovery import DistillationConfig
from pbcompress.core.modules import preserved_mode
from pbcompress.core.randomness import seeded
from pbcompress.errors import CompressionError
from pbcompress.training.compared_outputs import Compared, compared_parts, parts_of
from pbcompress.training.first_mistakes import explained
from pbcompress.training.task import Task

__all__ = [
    "Objective",
    "check_distillation",
    "distillation_loss",
    "feature_loss",
    "label_loss",
    "make_objective",
    "relation_loss",
]

Objective = Callable[[nn.Module, Any], Tensor]  # network and batch to loss


def distillation_loss(
    student: Tensor, teacher: Tensor, temperature: float, axis: int = 1
) -> Tensor:
    """Return the divergence of the teacher's softened class probabilities from the student's.

    It is KL(teacher || student) of ``softmax(scores / temperature)``, averaged over samples and
    positions, times ``temperature ** 2``, so that its gradient keeps the size of the task's.

    Args:
        student: Class scores, shape (N, ..., classes, ...).
        teacher: Of the same shape.
        temperature: Above 0.
        axis: Of the classes.

    Example:
        >>> scores = torch.tensor([[1.0, 2.0]])
        >>> distillation_loss(scores, scores, 4.0).item()
        0.0

    Source:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, section 2,
        https://arxiv.org/abs/1503.02531.
    """
    own = functional.log_softmax(student / temperature, axis)
    wanted = functional.log_softmax(teacher / temperature, axis)
    by_class = functional.kl_div(own, wanted, reduction="none", log_target=True)
    return by_class.sum(axis).mean() * temperature**2


def relation_loss(student: Tensor, teacher: Tensor, temperature: float, axis: int = 1) -> Tensor:
    """Return how far the student's class probabilities are from following the teacher's.

    It is the mean of 1 - r over samples, plus the mean over classes, times ``temperature ** 2``,
    where r is Pearson's correlation of ``softmax(scores / temperature)``: of a sample over its
    classes, and of a class over all samples. A small network need not match the teacher's
    probabilities, only rank classes and samples as it does.

    Args:
        student: Class scores, shape (N, ..., classes, ...); positions count as samples.
        teacher: Of the same shape.
        temperature: Above 0.
        axis: Of the classes.

    Example:
        >>> scores = torch.tensor([[1.0, 2.0, 5.0], [4.0, 2.0, 1.0]])
        >>> round(relation_loss(scores, scores, 1.0).item(), 5)
        0.0

    Source:
        Huang et al., Knowledge Distillation from A Stronger Teacher, 2022, section 3.2,
        https://arxiv.org/abs/2205.10536.
    """
    own, wanted = (
        functional.softmax(scores.movedim(axis, -1).flatten(0, -2) / temperature, -1)
        for scores in (student, teacher)
    )
    of_samples, of_classes = (
        functional.cosine_similarity(
            own - own.mean(a, keepdim=True), wanted - wanted.mean(a, keepdim=True), a
        )
        for a in (1, 0)
    )
    return ((1 - of_samples).mean() + (1 - of_classes).mean()) * temperature**2


def label_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the same for labels of which several may hold: the mean over all of them.

    Args:
        student: Scores of labels, of any shape; their sigmoid is a probability.
        teacher: Of the same shape.
        temperature: Above 0.

    Example:
        >>> label_loss(torch.zeros(2, 1), torch.zeros(2, 1), 4.0).item()
        0.0
    """
    both = [torch.stack((t, -t)) / temperature for t in (student, teacher)]  # it holds, or not
    own, wanted = (functional.logsigmoid(scores) for scores in both)
    by_case = functional.kl_div(own, wanted, reduction="none", log_target=True)
    return by_case.sum(0).mean() * temperature**2


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the mean over features of |student - teacher|^2 / |teacher|^2.

    Example:
        >>> feature_loss([torch.zeros(2, 3)], [torch.ones(2, 3)]).item()
        1.0
    """
    parts = [
        (s - t).square().sum() / t.square().sum().clamp(min=torch.finfo(t.dtype).tiny)
        for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(parts).mean()


def make_objective(
    task: Task,
    config: DistillationConfig,
    teacher: nn.Module | None,
    student: nn.Module | None = None,
) -> Objective:
    """Return the loss of neuron phases: the task's, mixed with the distance from the teacher.

    Args:
        task: Loss and forward.
        config: How much of the loss, and at which temperature.
        teacher: The network to learn from; None, or no share of it: the task alone.
        student: The plain network inside of the one that runs; None: they are one.
    """
    if teacher is None or not config.is_on:
        return lambda network, batch: explained(task.loss, *task.run(network, batch))
    return _Distillation(task, config, teacher, student)


def check_distillation(
    task: Task, config: DistillationConfig, teacher: nn.Module | None, batch: Any
) -> None:
    """Raise where the outputs of a teacher cannot be compared; it is left as it is.

    Args:
        task: Its loss says what they are.
        config: Where it does not ask for a comparison, nothing is checked.
        teacher: The network to learn from.
        batch: On its device.
    """
    if teacher is not None and config.share:
        with _quiet(teacher, ()), seeded("check"):
            output, target = task.run(teacher, batch)
        compared_parts(task, config, output, target)


class _Distillation:
    def __init__(
        self, task: Task, config: DistillationConfig, teacher: nn.Module, student: nn.Module | None
    ) -> None:
        self.task, self.config, self.teacher, self.student = task, config, teacher, student
        self._features: tuple[str, ...] | None = None
        self._compared: tuple[Compared, ...] | None = None

    def __call__(self, network: nn.Module, batch: Any) -> Tensor:
        share, weight = self.config.share, self.config.features
        student = network if self.student is None else self.student
        names = self._names(student, batch) if weight else ()
        with _quiet(self.teacher, names) as wanted:
            theirs, _ = self.task.run(self.teacher, batch)
        with _observed(student, names) as found:
            output, target = self.task.run(network, batch)
        loss = (1 - share) * explained(self.task.loss, output, target)
        if share:
            if self._compared is None:
                self._compared = compared_parts(self.task, self.config, theirs, target)
            loss = loss + share * _distance(self._compared, output, theirs, self.config)
        if weight:
            loss = loss + weight * feature_loss(
                [found[name] for name in names], [wanted[name] for name in names]
            )
        return loss

    def _names(self, network: nn.Module, batch: Any) -> tuple[str, ...]:
        """Return the modules of both networks whose outputs have one shape, found once."""
        if self._features is None:
            both = {n for n, _ in network.named_modules() if n}
            both &= {n for n, _ in self.teacher.named_modules()}
            shapes = []
            for model in (network, self.teacher):
                with _quiet(model, sorted(both)) as found:
                    self.task.run(model, batch)
                shapes.append({name: value.shape for name, value in found.items()})
            alike = (n for n in shapes[0] if shapes[0][n] == shapes[1].get(n))
            self._features = tuple(sorted(alike))
        if not self._features:
            raise CompressionError(
                "DistillationConfig.features was given, and no module has an output of the same "
                "shape in both networks. Use its share, or keep the width of some layers."
            )
        return self._features


def _distance(
    compared: Sequence[Compared], output: Any, wanted: Any, config: DistillationConfig
) -> Tensor:
    """Return the sum of the distances of all parts of an output from the teacher's."""
    ours, theirs = _tensors(output), _tensors(wanted)
    return torch.stack(
        [_part_distance(p, ours.get(p.name), theirs.get(p.name), config) for p in compared]
    ).sum()


def _part_distance(
    part: Compared, ours: Tensor | None, theirs: Tensor | None, config: DistillationConfig
) -> Tensor:
    if ours is None or theirs is None or ours.shape != theirs.shape:
        shapes = ["nothing" if t is None else str(tuple(t.shape)) for t in (ours, theirs)]
        raise CompressionError(
            f"Distillation compares {part.name}; the network gives {shapes[0]} and its teacher "
            f"{shapes[1]}. Pass a teacher of the same task."
        )
    if part.kind == "values":
        return functional.mse_loss(ours, theirs)
    assert config.temperature is not None
    if part.kind == "labels":
        return label_loss(ours, theirs, config.temperature)
    if part.is_share:
        least = torch.finfo(ours.dtype).tiny
        ours, theirs = ours.clamp(min=least).log(), theirs.clamp(min=least).log()
    of_classes = relation_loss if config.loss == "dist" else distillation_loss
    return of_classes(ours, theirs, config.temperature, part.axis)


def _tensors(output: Any) -> dict[str, Tensor]:
    """Return the tensors of an output, in float32 at least."""
    return {n: t.float() if t.element_size() < 4 else t for n, t in parts_of(output)}


@contextmanager
def _quiet(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect outputs in eval mode, without gradients."""
    with torch.no_grad(), preserved_mode(model, training=False), _observed(model, names) as found:
        yield found


@contextmanager
def _observed(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the output tensors of modules by name, and leave no hook behind."""
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                found[name] = output

        return hook

    with ExitStack() as stack:
        for name in names:
            handle = model.get_submodule(name).register_forward_hook(watch(name))
            stack.callback(handle.remove)
        yield found
