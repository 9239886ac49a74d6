"""Which parts of an output distillation compares, and as what: told by the task's loss itself.

A cross entropy does not change when all scores along the axis of its classes grow by one number,
so the sum of its gradient along that axis is zero, and along no other. The gradient of a logistic
loss has its known curve at every element. That of a squared error is a straight line; any other
loss of values is least where the output is the target.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_unflatten

from pbcompress.config.recovery import DistillationConfig
from pbcompress.core.randomness import seeded
from pbcompress.errors import CompressionError
from pbcompress.training.task import Task

__all__ = ["Compared", "Kind", "compared_parts", "parts_of"]

Kind = Literal["classes", "labels", "values"]
CLOSE = 1e-3  # of gradients in float32


@dataclass(frozen=True)
class Compared:
    """A tensor of an output, and how two of them are compared.

    Attributes:
        name: For messages.
        index: Its place in `parts_of`.
        kind: "classes": scores of classes of which one is right; "labels": of several that may
            be; "values": numbers.
        axis: Of the classes; 0 where there are none.
        is_share: Whether the classes have probabilities in place of scores.
    """

    name: str
    index: int
    kind: Kind
    axis: int = 0
    is_share: bool = False


def parts_of(output: Any) -> list[tuple[str, Tensor]]:
    """Return the tensors of an output by name: its logits alone, where it has some.

    Example:
        >>> [name for name, _ in parts_of({"a": torch.zeros(2, 3), "b": torch.zeros(2)})]
        ["output['a']", "output['b']"]
    """
    if isinstance(getattr(output, "logits", None), Tensor):
        return [("output.logits", output.logits)]
    leaves, _ = tree_flatten_with_path(output)
    return [(f"output{keystr(path)}", leaf) for path, leaf in leaves if isinstance(leaf, Tensor)]


def compared_parts(
    task: Task, config: DistillationConfig, output: Any, target: Any
) -> tuple[Compared, ...]:
    """Return what of an output is compared, and as what.

    Args:
        task: Its loss is called on other outputs.
        config: May say ``outputs`` and ``axis``.
        output: Of the teacher, for one batch; without gradient.
        target: Of the same batch.

    Raises:
        CompressionError: The loss does not tell what a part is; it is named.
    """
    found: list[Compared] = []
    for index, (name, part) in enumerate(parts_of(output)):
        if not part.is_floating_point() or part.dim() == 0:
            continue
        probe = _Probe(task, output, target, index, part)
        if probe.is_seen:
            found.append(_told(probe, config, name, index))
    if found:
        return tuple(found)
    parts = parts_of(output)
    if len(parts) == 1:  # a loss that was taken inside of the network
        return (_by_shape(config, *parts[0], target),)
    raise _refused("no part of the output", f"a {type(output).__name__} that the loss ignores")


def _told(probe: "_Probe", config: DistillationConfig, name: str, index: int) -> Compared:
    if config.outputs in ("labels", "values"):
        return Compared(name, index, config.outputs)
    is_given = config.outputs == "classes"
    if is_given and config.axis is not None:
        return Compared(name, index, "classes", _axis(config.axis, probe.part, name))
    if not is_given and probe.is_quadratic():
        return Compared(name, index, "values")
    axes = probe.class_axes()
    if len(axes) == 1:
        return Compared(name, index, "classes", axes[0])
    if not is_given and not axes:
        if probe.is_logistic():
            return Compared(name, index, "labels")
        if probe.is_least_at_target():
            return Compared(name, index, "values")
    for is_share, values in ((False, probe.part.exp()), (True, probe.part)):
        axes = axes or _axes_of_shares(values)
        if len(axes) == 1:
            return Compared(name, index, "classes", axes[0], is_share)
    if is_given and probe.part.dim() == 2:
        return Compared(name, index, "classes", 1)
    raise _refused(name, f"a tensor of shape {tuple(probe.part.shape)}")


def _by_shape(config: DistillationConfig, name: str, part: Tensor, target: Any) -> Compared:
    if config.outputs in ("labels", "values"):
        return Compared(name, 0, config.outputs)
    if config.axis is not None:
        return Compared(name, 0, "classes", _axis(config.axis, part, name))
    whole = [t for t in tree_leaves(target) if isinstance(t, Tensor) and not t.is_floating_point()]
    axes = [
        a
        for a in range(1, part.dim())
        if part.shape[a] > 1
        and any((*part.shape[:a], *part.shape[a + 1 :]) == tuple(t.shape) for t in whole)
    ]
    if len(axes) != 1:
        raise _refused(name, f"a tensor of shape {tuple(part.shape)} that the loss ignores")
    return Compared(name, 0, "classes", axes[0])


def _axis(axis: int, part: Tensor, name: str) -> int:
    if -part.dim() <= axis < part.dim() and axis % part.dim() > 0:
        return axis % part.dim()
    raise CompressionError(
        f"DistillationConfig.axis was given as {axis}; {name} has the shape {tuple(part.shape)}, "
        "whose first axis is the batch. Give the axis of its classes."
    )


def _axes_of_shares(values: Tensor) -> list[int]:
    if not bool((values >= 0).all()):
        return []
    return [
        a
        for a in range(1, values.dim())
        if values.shape[a] > 1 and bool((values.sum(a) - 1).abs().max() < CLOSE)
    ]


class _Probe:
    """Calls a loss on other values of one part of an output."""

    def __init__(self, task: Task, output: Any, target: Any, index: int, part: Tensor) -> None:
        self._task, self._output, self._target, self._index = task, output, target, index
        low = part.element_size() < 4
        self.part = part.detach().float() if low else part.detach()
        own = torch.Generator().manual_seed(0)
        random = torch.randn((2, *part.shape), generator=own)
        self._random = random.to(self.part)
        gradients = [self._gradient(v) for v in (self.part, *self._random)]
        self._at_random = [g for g in gradients[1:] if g is not None]
        self.is_seen = any(g is not None and bool(g.any()) for g in gradients)

    def _loss(self, value: Tensor) -> Tensor:
        with seeded("distillation"), torch.enable_grad():
            found: Tensor = self._task.loss(
                _replaced(self._output, self._index, value), self._target
            )
            return found

    def _gradient(self, value: Tensor) -> Tensor | None:
        """Return the gradient of the loss; None where it raises, or does not see the part."""
        value = value.clone().requires_grad_()
        try:
            (found,) = torch.autograd.grad(self._loss(value), value, allow_unused=True)
        except Exception:  # a loss may refuse values out of its range
            return None
        return found if found is not None and bool(found.isfinite().all()) else None

    def _gradients(self, values: Sequence[Tensor]) -> list[Tensor] | None:
        found = [self._gradient(value) for value in values]
        return None if any(g is None for g in found) else [g for g in found if g is not None]

    def class_axes(self) -> list[int]:
        """Return the axes along which a gradient sums to zero."""
        if len(self._at_random) < 2:
            return []
        return [
            a
            for a in range(1, self.part.dim())
            if self.part.shape[a] > 1
            and all(_is_small(g.sum(a), g) and bool(g.any()) for g in self._at_random)
        ]

    def is_quadratic(self) -> bool:
        """Tell whether the gradient is a straight line."""
        a = self._random[0]
        found = self._gradients([torch.zeros_like(a), a, 2 * a])
        if found is None:
            return False
        once, twice = found[1] - found[0], found[2] - found[0]
        return _is_there(once, found[1]) and _is_small(twice - 2 * once, twice)

    def is_logistic(self) -> bool:
        """Tell whether the gradient of each element has the curve of a logistic function."""
        zero = torch.zeros_like(self.part)
        found = self._gradients([zero, zero + 1, zero + 2, zero - 1])
        if found is None:
            return False
        up, twice, down = (g - found[0] for g in found[1:])
        one, two = torch.tensor([1.0, 2.0]).sigmoid().tolist()
        is_curve = _is_small(twice * (one - 0.5) - up * (two - 0.5), twice)
        return _is_there(up, found[1]) and is_curve and _is_small(up + down, up)

    def is_least_at_target(self) -> bool:
        """Tell whether no value nearby has a smaller loss than a target, and some a larger."""
        for target in tree_leaves(self._target):
            if isinstance(target, Tensor) and target.numel() == self.part.numel():
                value = target.to(self.part).reshape(self.part.shape)
                if self._is_least_at(value):
                    return True
        return False

    def _is_least_at(self, value: Tensor) -> bool:
        own, others = self._number(value), list[float]()
        apart = value.roll(1, 0) - value
        for step in (apart, torch.ones_like(value), -torch.ones_like(value)):
            for share in (0.5, -0.5, 0.1, -0.1):
                other = self._number(value + share * step)
                others += [] if other is None else [other]
        if own is None or not others:
            return False
        slack = 1e-6 * max(abs(own), *map(abs, others))
        return min(others) >= own - slack and max(others) > own + slack

    def _number(self, value: Tensor) -> float | None:
        try:
            return self._loss(value).item()
        except Exception:
            return None


def _is_small(rest: Tensor, whole: Tensor) -> bool:
    return bool(rest.abs().sum() <= CLOSE * whole.abs().sum())


def _is_there(change: Tensor, whole: Tensor) -> bool:
    return bool(change.abs().sum() > CLOSE * whole.abs().sum())


def _replaced(output: Any, index: int, value: Tensor) -> Any:
    """Return an output with another tensor at a place of `parts_of`."""
    if isinstance(output, Tensor):
        return value
    if isinstance(getattr(output, "logits", None), Tensor):
        if isinstance(output, tuple) and hasattr(output, "_replace"):
            return output._replace(logits=value)
        other = copy.copy(output)
        object.__setattr__(other, "logits", value)
        if isinstance(other, dict):  # as the outputs of transformers are
            dict.__setitem__(other, "logits", value)
        return other
    leaves, spec = tree_flatten_with_path(output)
    places = [i for i, (_, leaf) in enumerate(leaves) if isinstance(leaf, Tensor)]
    changed = [leaf for _, leaf in leaves]
    changed[places[index]] = value
    return tree_unflatten(changed, spec)


def _refused(name: str, found: str) -> CompressionError:
    return CompressionError(
        "Distillation was to compare outputs with the teacher's, and the loss does not tell what "
        f"{name} is: {found}. It looks for scores of classes (a cross entropy), of labels (a "
        'logistic loss) and for values. Write DistillationConfig(outputs="classes", axis=...), '
        'outputs="labels" or outputs="values", or leave distillation out.'
    )
