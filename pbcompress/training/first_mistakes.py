"""What went wrong in a call of a network, a loss or a metric, and what to write instead.

An error of torch tells of tensors deep inside. What a caller needs is the split, the shapes that
came, what was expected, and the line to write.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from pbcompress.core.randomness import seeded
from pbcompress.errors import CompressionError, first_line
from pbcompress.training.class_targets import (
    BATCHES,
    IGNORED,
    Problem,
    class_problem,
)

__all__ = [
    "NUMPY",
    "ONE_VALUE",
    "called",
    "described",
    "explained",
    "in_batch",
    "is_numpy",
    "refuse_broadcast",
    "refuse_classes",
    "refused",
    "single_sample_error",
]

OF_CLASSES = (
    "target dtype",
    "scalar type Long but found",  # torch 2.9
    "0D or 1D target",
    "class probabilities",
    "out of bounds",
    "Expected target size",
)
UNKNOWN = Problem(
    "outputs and targets that fit together",
    "Task(loss=..., metric=...) that take these, or Task(forward=...) that gives others",
)
UNDEFINED = Problem(
    UNKNOWN.expected,
    f"{UNKNOWN.write}, or samples on which the metric is defined (of every class, say)",
)
ONE_VALUE = "Expected more than 1 value per channel"
NUMPY = "torch.as_tensor(...) of every array, or wrap the data set in a DataLoader, which does so"


def described(value: Any) -> str:
    """Return what a value is, in a few words: types and shapes.

    Example:
        >>> import torch
        >>> described((torch.zeros(2, 3), {"a": torch.zeros(2, dtype=torch.long)}))
        'a tuple of float32 (2, 3) and a dict of a: int64 (2,)'
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if is_numpy(value):
        return f"numpy {value.dtype} {value.shape}"
    if isinstance(value, Mapping):
        return f"a dict of {_enumerated([f'{k}: {described(v)}' for k, v in value.items()])}"
    if isinstance(value, tuple | list):
        kinds = {type(v) for v in value}
        if len(value) > 1 and len(kinds) == 1 and kinds & {int, float, bool, str}:
            return f"a {type(value).__name__} of {len(value)} {kinds.pop().__name__}"
        return f"a {type(value).__name__} of {_enumerated([described(v) for v in value])}"
    return f"a {type(value).__name__}"


def _enumerated(parts: list[str]) -> str:
    parts = parts if len(parts) <= 4 else [*parts[:3], f"{len(parts) - 3} more"]
    return " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def is_numpy(value: Any) -> bool:
    """Tell whether a value is an array of numpy."""
    return type(value).__module__ == "numpy" and hasattr(value, "dtype")


def called(call: Callable[[Any, Any], Any], name: str, output: Any, target: Any, where: str) -> Any:
    """Return ``call(output, target)`` of a loss or a metric; an error says what to write.

    Args:
        call: The function.
        name: As messages put it, such as "Task.loss".
        output: Of the network.
        target: What it should be.
        where: Names the batch.
    """
    try:
        with seeded("call"), warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            value = call(output, target)
    except Exception as err:
        if isinstance(err, CompressionError):
            raise CompressionError(f"{name} was called on {where}. {err}") from err
        unknown = UNDEFINED if name == "Task.metric" else UNKNOWN
        problem = _problem(output, target, first_line(err)) or unknown
        if isinstance(call, type):
            own = call.__name__
            problem = Problem(f"a function of outputs and targets, not the class {own}", f"{own}()")
        raise refused(name, call, (output, target), where, problem, err) from err
    for warning in seen:
        if "target size" in str(warning.message):
            problem = _shape_problem(output, target)
            raise refused(name, call, (output, target), where, problem, None)
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return value


@contextmanager
def in_batch(where: str) -> Iterator[None]:
    """Say of an error which batch it was: in the message of one of ours, in a note of another."""
    try:
        yield
    except CompressionError as err:
        if type(err) is not CompressionError:
            raise
        raise CompressionError(f"This was {where}. {err}") from err
    except Exception as err:
        if ONE_VALUE in str(err):
            raise single_sample_error(where) from err
        err.add_note(f"This was {where}.")
        raise


def single_sample_error(where: str) -> CompressionError:
    """Return the error of a norm that was to take the statistics of a batch of one sample."""
    return CompressionError(
        f"There is one sample in {where}, and in training a BatchNorm takes the statistics of its "
        "batch, which needs two or more. Write DataLoader(..., drop_last=True), or another batch "
        "size."
    )


def explained(call: Callable[[Any, Any], Tensor], output: Any, target: Any) -> Tensor:
    """Return a loss; an error that has a known cause says what to write."""
    try:
        return call(output, target)
    except Exception as err:
        problem = _problem(output, target, first_line(err))
        if problem is None or isinstance(err, CompressionError):
            raise
        raise refused("Task.loss", call, (output, target), "a batch", problem, err) from err


def refused(
    name: str,
    call: Any,
    both: tuple[Any, Any],
    where: str,
    problem: Problem,
    err: Exception | None,
) -> CompressionError:
    """Return the error of a call of a loss or a metric.

    Args:
        name: As messages put it, such as "Task.loss".
        call: The function.
        both: The output and the target that it was given.
        where: Names the batch.
        problem: What was expected, and what to write.
        err: What it raised, if it did.
    """
    failed = "" if err is None else f" and raised {type(err).__name__}: {first_line(err)}"
    own = getattr(call, "__name__", type(call).__name__)
    return CompressionError(
        f"{name} ({own}) was called on {where}{failed}. It takes {problem.expected}; found outputs "
        f"{described(both[0])} and targets {described(both[1])}. Write {problem.write}."
    )


def _problem(output: Any, target: Any, text: str) -> Problem | None:
    """Return what is the matter where a loss or metric raised; None: it is not known."""
    if output is None:
        return Problem("one tensor of the network", "a forward with a return")
    if not isinstance(output, Tensor):
        return Problem("one tensor of the network", _forward_of(output))
    if any(map(is_numpy, tree_leaves(target))):
        return Problem("targets that are tensors", NUMPY)
    if isinstance(target, int | float):
        return Problem("a batch", BATCHES)
    if not isinstance(target, Tensor):
        return Problem("targets that are one tensor", _tensor_of(target))
    if any(part in text for part in OF_CLASSES):
        is_last = target.shape == output.shape[:-1] and "out of bounds" in text
        found = class_problem(output.movedim(-1, 1) if is_last else output, target)
        if found is not None:
            return found
    if "between 0 and 1" in text:
        scores = "F.binary_cross_entropy_with_logits, which takes scores"
        return Problem("probabilities and targets from 0 to 1", scores)
    if output.shape != target.shape and output.numel() == target.numel():
        return _shape_problem(output, target)
    if output.shape == target.shape and not target.is_floating_point():
        return Problem("targets of the outputs' type", "target.float()")
    return None


def _tensor_of(target: Any) -> str:
    """Return what makes a tensor of targets."""
    kinds = {type(value) for value in target} if isinstance(target, list | tuple) else set()
    if kinds and kinds <= {int, float, bool}:
        return "torch.tensor(target), or a DataLoader over a data set, which makes tensors"
    if kinds == {str}:
        return "numbers for names: torch.tensor([names.index(name) for name in target])"
    return "Task(forward=...) that returns it"


def _forward_of(output: Any) -> str:
    part = "[0]"
    if isinstance(output, Mapping):
        part = f"[{next(iter(output), 'logits')!r}]"
    elif hasattr(output, "logits"):
        part = ".logits"
    return f"Task(forward=lambda model, batch: (model(batch[0]){part}, batch[1]))"


def _shape_problem(output: Any, target: Any) -> Problem:
    expected = "outputs and targets of one shape"
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return Problem(expected, "Task(forward=...) that returns two tensors")
    if output.numel() != target.numel():
        return Problem(expected, f"targets of shape {tuple(output.shape)}")
    if target.unsqueeze(-1).shape == output.shape:
        return Problem(expected, "target.unsqueeze(-1)")
    if output.unsqueeze(-1).shape == target.shape:
        return Problem(expected, "target.squeeze(-1)")
    return Problem(expected, f"target.reshape{tuple(output.shape)}")


def refuse_classes(task_loss: Any, output: Any, target: Any, where: str) -> None:
    """Raise where a cross entropy would not take the targets: on a GPU it would abort."""
    is_module = isinstance(task_loss, nn.CrossEntropyLoss | nn.NLLLoss)
    if not is_module and task_loss not in (functional.cross_entropy, functional.nll_loss):
        return
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return
    ignored = task_loss.ignore_index if is_module else IGNORED
    problem = class_problem(output, target, ignored=ignored)
    if problem is not None:
        raise refused("Task.loss", task_loss, (output, target), where, problem, None)


def refuse_broadcast(
    call: Callable[[Any, Any], Any],
    name: str,
    both: tuple[Any, Any],
    where: str,
    value: Callable[[Any], float],
) -> None:
    """Raise where a loss or metric takes each output against each target.

    Outputs of shape (N, 1) and targets of shape (N,) become N x N differences, and no error. It is
    seen by a call on outputs of the targets' shape, which gives another number.

    Args:
        call: The function.
        name: As messages put it.
        both: Output and target.
        where: Names the batch.
        value: Turns what ``call`` returns into a number.
    """
    output, target = both
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return
    is_alike = output.squeeze().shape == target.squeeze().shape
    if output.shape == target.shape or not is_alike or max(output.dim(), target.dim()) < 2:
        return
    try:
        with seeded("call"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = value(call(output, target))
            alike = value(call(output.reshape(target.shape), target))
    except Exception:
        return  # it wants the shapes that it got
    if abs(found - alike) > 1e-4 * max(abs(found), abs(alike)):
        raise refused(name, call, both, where, _shape_problem(output, target), None)
