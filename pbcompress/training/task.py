"""Data and task: what is learned, and how it is scored."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from pbcompress.core.inputs import (
    BatchAxes,
    Call,
    as_call,
    batch_places,
    map_tensors,
    tensors_of,
)
from pbcompress.core.modules import copy_model
from pbcompress.core.randomness import seeded
from pbcompress.errors import CompressionError
from pbcompress.training.batch_tensors import moved
from pbcompress.training.class_targets import IGNORED, class_problem
from pbcompress.training.first_mistakes import described
from pbcompress.training.joining import sample_count
from pbcompress.training.named_batches import (
    described_batch,
    labels_scored,
    losses_of_tokens,
    micro_f1,
    next_tokens_scored,
    perplexity,
)

__all__ = [
    "Batches",
    "CheckedData",
    "Data",
    "Task",
    "accuracy",
    "batch_count",
    "check_split",
    "first_batch",
    "inputs_of",
    "seeded_generators",
    "to_number",
]

Batches = Iterable[Any]
Problem = Literal["classification", "multi_label", "regression", "causal_lm"]
TARGETS = ("labels", "label", "target", "targets", "y")  # what a dict may call them


@dataclass(frozen=True)
class Data:
    """The batches of a task; each split can be gone through again and again.

    Args:
        train: Trains the weights.
        val: Decides: best epoch, whether a dendrite set stays, which network is the result.
        test: Scored once, at the end; never decides anything.
    """

    train: Batches
    val: Batches
    test: Batches | None = None


@dataclass(frozen=True)
class CheckedData(Data):
    """Data that `check_data` found to be good, which takes time once.

    Args:
        first: The first train batch, on the device that trains.
    """

    first: Any = None


def accuracy(output: Tensor, target: Tensor) -> float:
    """Return the share of samples whose highest output is the target class.

    Args:
        output: Shape (N, classes, ...).
        target: Shape (N, ...), integers; -100, which a cross entropy leaves out, does not count.

    Raises:
        CompressionError: The targets are not the classes of the outputs; what to write is said.

    Example:
        >>> accuracy(torch.eye(3), torch.tensor([0, 1, 1]))
        0.6666666865348816
    """
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        raise CompressionError(
            "accuracy takes two tensors; found outputs that are a "
            f"{type(output).__name__} and targets that are a {type(target).__name__}. Write "
            "Task(forward=...) that returns tensors, or Task(metric=...) that takes these."
        )
    problem = class_problem(output, target, takes_shares=False)
    if problem is not None:
        raise CompressionError(
            f"accuracy takes {problem.expected}; found outputs of shape {tuple(output.shape)} and "
            f"targets of shape {tuple(target.shape)}. Write {problem.write}, or a metric of your "
            "own."
        )
    hits, counts = output.argmax(1) == target, target != IGNORED
    return hits[counts].float().mean().item()


@dataclass(frozen=True)
class Task:
    """What is learned, and how it is scored; the default is classification.

    Args:
        loss: ``loss(output, target)`` gives the scalar to minimise.
        metric: ``metric(output, target)`` gives one number for a whole split; it gets the outputs
            and targets of all its batches joined along the first axis. Batches of different
            lengths (of tokens, say) are joined as one long sample, or padded with targets of -100,
            0 or -1, if it has the same number then as without.
        higher_is_better: Direction of the metric; zero and negative values are fine.
        forward: ``forward(model, batch)`` gives ``(output, target)``; None is a batch of
            ``(inputs, target)``, with inputs a tensor, a tuple or a dict.
        name: Of the metric, for tables.
        batch_axes: Which axes of the network's inputs are the batch; see `Example`. None: the first
            axis of every tensor.
        reduce: ``reduce(output, target)`` gives what the metric needs of the output of one batch,
            where that is much less (the loss of each token): then a split's outputs fit in memory.

    Example:
        >>> mse = torch.nn.functional.mse_loss
        >>> Task(loss=mse, metric=mse, higher_is_better=False, name="mse").score(0.5)
        -0.5
    """

    loss: Callable[[Any, Any], Tensor] = functional.cross_entropy
    metric: Callable[[Any, Any], Any] = accuracy
    higher_is_better: bool = True
    forward: Callable[[nn.Module, Any], tuple[Any, Any]] | None = None
    name: str = ""
    batch_axes: BatchAxes | None = None
    reduce: Callable[[Any, Any], Any] | None = None

    @classmethod
    def huggingface(cls, problem: Problem = "classification") -> "Task":
        """Return the task of batches that are dicts with ``labels``, for models of transformers.

        Args:
            problem: "classification": one class for each sample, token (of a tagger, or masked; a
                label of -100 does not count) or pixel, scored by accuracy. "multi_label": several
                classes may hold, labels are floats; micro F1. "regression": the mean squared error.
                "causal_lm": see `causal_lm`.

        Example:
            >>> Task.huggingface("regression").metric_name
            'mse_loss'
        """
        if problem == "causal_lm":
            return cls.causal_lm()
        if problem == "classification":
            return cls(forward=labels_scored)
        if problem == "multi_label":
            loss = functional.binary_cross_entropy_with_logits
            return cls(loss, micro_f1, forward=labels_scored)
        if problem == "regression":
            mse = functional.mse_loss
            return cls(mse, mse, higher_is_better=False, forward=labels_scored)
        raise CompressionError(
            f"problem={problem!r} was asked for. Choose one of "
            f"{', '.join(map(repr, get_args(Problem)))}, or write Task(forward=..., loss=...)."
        )

    @classmethod
    def causal_lm(cls) -> "Task":
        """Return the task of foretelling the next token, scored by perplexity.

        Batches are tokens of shape (N, T), or dicts with ``input_ids``. What is to be foretold are
        the ``labels`` of a dict (-100 does not count), else the tokens that its ``attention_mask``
        leaves. The model is one of transformers, or returns scores of shape (N, T, tokens).

        Example:
            >>> net = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5))
            >>> scores, targets = Task.causal_lm().run(net, torch.tensor([[1, 2, 3, 4]]))
            >>> scores.shape, targets
            (torch.Size([1, 5, 3]), tensor([[2, 3, 4]]))
        """
        return cls(
            metric=perplexity,
            higher_is_better=False,
            forward=next_tokens_scored,
            reduce=losses_of_tokens,
        )

    def __post_init__(self) -> None:
        example = {"loss": "F.cross_entropy", "metric": "lambda output, target: ..."}
        for name in ("loss", "metric", "forward", "reduce"):
            value = getattr(self, name)
            if not callable(value) and (value is not None or name in example):
                takes = "(model, batch)" if name == "forward" else "(output, target)"
                write = example.get(name, "lambda model, batch: (model(batch[0]), batch[1])")
                raise CompressionError(
                    f"Task.{name} must be a function of {takes}; found {value!r}. Write "
                    f"Task({name}={write}), say."
                )

    @property
    def metric_name(self) -> str:
        """Name of the metric: ``name``, or that of the function."""
        return self.name or getattr(self.metric, "__name__", "metric")

    def score(self, metric: float) -> float:
        """Return the metric so that higher is better."""
        return metric if self.higher_is_better else -metric

    def said(self, call: Call) -> Call:
        """Return a call with the axes that the task says are the batch, where nothing else does."""
        axes = self.batch_axes if call.batch_axes is None else call.batch_axes
        return replace(call, batch_axes=axes)

    def samples(self, model: nn.Module, batch: Any) -> int:
        """Return how many samples a batch has, along the axes that are said to be the batch.

        Where nothing is said it is `sample_count`. A batch without such an axis is one sample.
        """
        if self.batch_axes is None:
            return sample_count(batch)
        is_pair = self.forward is None and isinstance(batch, tuple | list) and len(batch) == 2
        inputs = batch[0] if is_pair else batch
        if not is_pair and not isinstance(batch, Mapping):
            return sample_count(batch)
        call = replace(as_call(inputs), batch_axes=self.batch_axes)
        places, tensors = batch_places(model, call), tensors_of(call)
        return next((tensors[number].shape[axis] for number, axis in places.items()), 1)

    def run(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        """Return ``(output, target)`` of one batch."""
        if self.forward is not None:
            return self.forward(model, batch)
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise CompressionError(
                "A batch of (inputs, target) was expected; the loader yielded "
                f"{described_batch(batch)}. Pass Task(forward=...) that takes (model, batch) and "
                f"returns (output, target){_forward_for(batch)}."
            )
        inputs, target = batch
        return _called(model, inputs), target

    def scored(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        """Return what the metric gets of one batch: its output, reduced, and its target."""
        output, target = self.run(model, batch)
        return output if self.reduce is None else self.reduce(output, target), target

    def outputs(self, model: nn.Module, batch: Any) -> Any:
        """Return the output of one batch, which may be inputs alone, without a target."""
        if self.forward is None:
            if isinstance(batch, Tensor | Mapping):
                return _called(model, batch)
            if isinstance(batch, tuple | list) and len(batch) == 1:
                return _called(model, batch[0])
        return self.run(model, batch)[0]


def _called(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def _forward_for(batch: Any) -> str:
    """Return how a forward for batches that are dicts with a target could be written."""
    names = [name for name in TARGETS if isinstance(batch, Mapping) and name in batch]
    if len(names) != 1 or len(batch) < 2:
        return ""
    others = [name for name in batch if name != names[0]]
    inputs = f"b[{others[0]!r}]"
    if len(others) > 1:
        inputs = f"**{{k: v for k, v in b.items() if k != {names[0]!r}}}"
    return f", such as lambda m, b: (m({inputs}), b[{names[0]!r}])"


def check_split(split: Any, name: str) -> None:
    """Raise unless a split can be gone through again and again."""
    if split is None or not isinstance(split, Iterable):
        raise CompressionError(
            f"Data.{name} must be batches that can be gone through again, such as a DataLoader "
            f"or a list; found {type(split).__name__}."
        )
    if isinstance(split, Iterator):
        raise CompressionError(
            f"Data.{name} is an iterator that ends after one pass. Give what makes it: a "
            "DataLoader, a list, or an object whose __iter__ starts anew."
        )


def first_batch(split: Any, name: str) -> Any:
    """Return the first batch of a split, in an order of its own; no random state is changed."""
    check_split(split, name)
    with seeded("first batch"), seeded_generators(split, 0):
        for batch in split:
            return batch
    raise CompressionError(f"Data.{name} yielded no batch. Give at least one.")


def inputs_of(batches: Batches, task: Task, model: nn.Module, device: torch.device) -> Call:
    """Return the inputs with which the first train batch calls the model."""
    network, calls = copy_model(model).to(device).eval(), list[Call]()

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Call(args, kwargs))

    network.register_forward_pre_hook(record, with_kwargs=True)
    batch = moved(first_batch(batches, "train"), device)
    with torch.no_grad(), seeded("check"):
        task.outputs(network, batch)
    if not calls:
        raise CompressionError(
            "Task.forward did not call the model, so its inputs are not known. Pass example_inputs."
        )
    return task.said(map_tensors(calls[0], lambda t: t.detach().clone()))


def batch_count(batches: Batches) -> int:
    """Return the number of batches; 0: it is not known."""
    try:
        return len(batches) if isinstance(batches, Sized) else 0
    except TypeError:  # a DataLoader over an IterableDataset
        return 0


def to_number(value: Any, name: str) -> float:
    """Return what a user's function gave as a number."""
    try:
        if isinstance(value, str):
            raise TypeError("a text is no number")
        return float(value)
    except (TypeError, ValueError, RuntimeError) as err:
        found = described(value) if isinstance(value, Tensor) else repr(value)
        raise CompressionError(
            f"{name} must return one number; it returned {found}. Reduce it, e.g. with .mean()."
        ) from err


@contextmanager
def seeded_generators(split: Any, seed: int) -> Iterator[None]:
    """Seed the generators that a loader carries, and give their states back at the end."""
    owners = [split, getattr(split, "sampler", None), getattr(split, "batch_sampler", None)]
    owners.append(getattr(owners[2], "sampler", None))
    found = {
        id(g): g for o in owners if isinstance(g := getattr(o, "generator", None), torch.Generator)
    }
    states = {key: generator.get_state() for key, generator in found.items()}
    for generator in found.values():
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for key, generator in found.items():
            generator.set_state(states[key])
