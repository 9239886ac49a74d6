"""Outputs and targets of a split, from those of its batches."""

from collections import UserDict
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from pbcompress.errors import CompressionError
from pbcompress.training.batch_tensors import check_finite
from pbcompress.training.joining import is_by_sample, sample_count, taken
from pbcompress.training.loop import evaluate
from pbcompress.training.task import Task


class Sizes(NamedTuple):
    boxes: list[Tensor]
    names: tuple[str, ...]


def by_sample(kind: str, start: int, count: int) -> Any:
    """Targets of some samples; that of number i has i + 1 rows of the value i."""
    boxes = [torch.full((i + 1, 4), float(i)) for i in range(start, start + count)]
    names = tuple(str(i) for i in range(start, start + count))
    return {
        "dicts": [{"boxes": b, "name": n} for b, n in zip(boxes, names, strict=True)],
        "tuple of dicts": tuple({"boxes": b} for b in boxes),
        "dict of lists": {"boxes": boxes, "names": list(names)},
        "ragged tensors": boxes,
        "strings": list(names),
        "numbers": [float(n) for n in names],
        "lists of lists": [b.tolist() for b in boxes],
        "named tuple": Sizes(boxes, names),
    }[kind]


TARGETS = ("dicts", "tuple of dicts", "dict of lists", "ragged tensors", "strings", "numbers")
TARGETS += ("lists of lists", "named tuple")


@pytest.mark.parametrize("sizes", [(3, 3, 3), (3, 3, 2), (1, 1), (4,), (2, 3)])
@pytest.mark.parametrize("kind", TARGETS)
def test_lists_grow_with_the_samples(kind: str, sizes: tuple[int, ...]) -> None:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    split = [
        (torch.zeros(n, 4), by_sample(kind, start, n))
        for start, n in zip(starts, sizes, strict=True)
    ]
    seen: list[Any] = []
    task = Task(metric=lambda output, target: seen.append(target) or 0.0)
    assert evaluate(nn.Linear(4, 2), split, task)[1] == sum(sizes)
    assert repr(seen[0]) == repr(by_sample(kind, 0, sum(sizes)))  # tensors have no ==


@pytest.mark.parametrize("sizes", [(3, 3), (3, 2)])
def test_detection_in_the_form_of_torchvision_is_joined(sizes: tuple[int, ...]) -> None:
    """Images, outputs and targets are lists; nothing has a batch axis."""

    class Detector(nn.Module):
        def forward(self, *images: Tensor) -> list[dict[str, Tensor]]:
            return [{"boxes": image.mean((0, 1))[None]} for image in images]

    split, start = [], 0
    for n in sizes:
        images = tuple(torch.full((3, 4 + i, 2), float(i)) for i in range(start, start + n))
        split.append((images, by_sample("tuple of dicts", start, n)))
        start += n
    pairs: list[Any] = []
    task = Task(metric=lambda o, t: pairs.extend(zip(o, t, strict=True)) or 0.0)
    assert evaluate(Detector(), split, task)[1] == sum(sizes)
    assert len(pairs) == sum(sizes)
    for number, (output, target) in enumerate(pairs):
        assert output["boxes"][0, 0] == number == target["boxes"][0, 0]


def test_parts_of_an_output_are_joined_part_by_part_at_any_batch_size() -> None:
    class Heads(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return [x, {"deep": (x + 1, x + 2)}]

    for sizes in ((2, 2), (5, 2), (3, 3)):
        split = [(torch.rand(n, 4), torch.zeros(n)) for n in sizes]
        seen: list[Any] = []
        evaluate(Heads(), split, Task(metric=lambda o, t, seen=seen: seen.append(o) or 0.0))
        whole = torch.cat([x for x, _ in split])
        first, second = seen[0]
        assert torch.equal(first, whole)
        assert torch.equal(second["deep"][1], whole + 2)


UNJOINABLE = {
    "shape": ([torch.zeros(2, 3), torch.zeros(2, 4, 1)], r"\(2, 3\) in one batch and \(2, 4, 1\)"),
    "parts": ([{"a": 1}, {"b": 1}], "has other parts"),
    "kinds": ([torch.zeros(2), 1.0], "is Tensor and float in turn"),
    "numbers": ([1.0, 2.0], "has a float, which cannot be joined"),
    "lengths": ([[torch.zeros(2)] * 3, [torch.zeros(2)] * 4], "has a list of 3 and 4 items"),
}


@pytest.mark.parametrize("name", UNJOINABLE)
def test_what_cannot_be_joined_is_said_with_what_to_do(name: str) -> None:
    targets, message = UNJOINABLE[name]
    split = [(torch.zeros(2, 4), target) for target in targets]
    with pytest.raises(CompressionError, match=f"the target .*{message}.*one item for each"):
        evaluate(nn.Linear(4, 2), split, Task(metric=lambda o, t: 0.0))


PAIR = [torch.zeros(2, 3), torch.zeros(2, 5)]


@pytest.mark.parametrize("targets", [PAIR, tuple(PAIR)], ids=["list", "tuple"])
def test_two_rows_that_may_be_samples_or_parts_are_refused(targets: Any) -> None:
    split = [(torch.zeros(2, 4), targets)] * 2
    with pytest.raises(CompressionError, match=r"2 tensors of as many rows.*name the parts in a"):
        evaluate(nn.Linear(4, 2), split, Task(metric=lambda o, t: 0.0))


@pytest.mark.parametrize("boxes", [torch.zeros(2, 4), [torch.zeros(1, 4), torch.zeros(3, 4)]])
def test_two_parts_that_differ_in_kind_are_parts_of_two_samples(boxes: Any) -> None:
    seen: list[Any] = []
    split = [(torch.zeros(2, 4), (boxes, torch.tensor([i, i]))) for i in range(3)]
    evaluate(nn.Linear(4, 2), split, Task(metric=lambda o, t: seen.append(t) or 0.0))
    found, labels = seen[0]
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(found) == 6


def sequences(start: int, count: int) -> list[Tensor]:
    return [torch.full(((7 * i) % 4 + 1, 2), float(i)) for i in range(start, start + count)]


@pytest.mark.parametrize(
    ("pack", "unpack"),
    [
        (lambda s: pack_sequence(s, enforce_sorted=False), unpack_sequence),
        (torch.nested.nested_tensor, Tensor.unbind),
        (lambda s: torch.nested.nested_tensor(s, layout=torch.jagged), Tensor.unbind),
    ],
    ids=["packed", "nested", "jagged"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_of_several_lengths_grow_with_the_samples(pack: Any, unpack: Any) -> None:
    seen: list[Any] = []
    split = [(torch.zeros(n, 4), pack(sequences(s, n))) for s, n in ((0, 3), (3, 2), (5, 3))]
    task = Task(metric=lambda output, target: seen.append(target) or 0.0)
    assert evaluate(nn.Linear(4, 2), split, task)[1] == 8
    for own, wanted in zip(unpack(seen[0]), sequences(0, 8), strict=True):
        assert torch.equal(own, wanted)
    assert not is_by_sample(seen[0], 8)  # nothing takes some of them


def test_a_nan_in_a_tensor_of_another_layout_is_found() -> None:
    bad = torch.tensor([[1.0, float("nan")], [0.0, 0.0]])
    nested = torch.nested.nested_tensor(list(bad), layout=torch.jagged)
    for tensor in (bad.to_sparse(), nested):
        with pytest.raises(CompressionError, match="NaN or infinity in here"):
            check_finite((tensor,), "here")
    check_finite((torch.eye(2).to_sparse(),), "here")


def test_samples_are_taken_from_every_part() -> None:
    value = ({"x": torch.arange(4)}, list("abcd"), (torch.arange(4), "constant"))
    assert is_by_sample(value, 4)
    x, letters, (y, constant) = taken(value, 4, torch.tensor([3, 3, 0]))
    assert (x["x"].tolist(), letters, y.tolist(), constant) == (
        [3, 3, 0],
        list("dda"),
        [3, 3, 0],
        "constant",
    )
    assert not is_by_sample((torch.arange(3), list("abcd")), 4)
    assert not is_by_sample(torch.tensor(1.0), 4)


class Pair(NamedTuple):
    x: Tensor
    y: Any


COUNTS = {
    "a tensor": (torch.zeros(3, 2), 3),
    "inputs and targets": ((torch.zeros(3, 2), torch.zeros(3)), 3),
    "two inputs": (((torch.zeros(3, 2), torch.zeros(3, 1)), torch.zeros(3)), 3),
    "a dict": ({"x": torch.zeros(3, 2), "y": torch.zeros(3)}, 3),
    "inputs in a dict": (({"x": torch.zeros(3, 2)}, torch.zeros(3)), 3),
    "targets in a dict": ((torch.zeros(3, 2), {"boxes": [{}, {}, {}]}), 3),
    "images": (([torch.zeros(3, 8, 8)] * 2, [{}, {}]), 2),
    "a number": (1.0, 1),
    "images and boxes": (([torch.zeros(3, 8, 8)] * 2, [torch.zeros(3, 4)] * 2), 2),
    "two inputs and two targets": (
        ((torch.zeros(5, 3), torch.zeros(5, 2)), (torch.zeros(5), torch.zeros(5))),
        5,
    ),
    "lists of them": ([[torch.zeros(5, 3)] * 2, [torch.zeros(5)] * 2], 5),
    "named tuples": ((Pair(torch.zeros(5, 3), 1), Pair(torch.zeros(5), 1)), 5),
    "packed": ((pack_sequence(sequences(0, 3), enforce_sorted=False),) * 2, 3),
    "inputs, targets and weights": ([torch.zeros(4, 3), torch.zeros(4), torch.zeros(4)], 4),
    "a tuple of three": ((torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(4, 2)), 4),
    "three alike": ([torch.zeros(5, 2)] * 3, 5),
    "three stacks of images": ([torch.zeros(5, 3, 8, 8)] * 3, 5),
    "inputs alone": ([torch.zeros(5, 3)], 5),
    "a list of images": ([torch.zeros(3, 8, 8)] * 5, 5),
    "a list of sequences": ([torch.zeros(n, 8) for n in (2, 3, 4)], 3),
    "a list of pairs": ([(torch.zeros(3), 1)] * 4, 4),
    "a list of dicts": ([{"x": torch.zeros(3)}] * 4, 4),
    "an object": (SimpleNamespace(x=torch.zeros(4, 2), y=torch.zeros(4)), 4),
    "a mapping of its own": (UserDict(x=torch.zeros(4, 2)), 4),
    "ragged ones": (
        (torch.nested.nested_tensor(list(map(torch.zeros, (2, 3))), layout=torch.jagged), 0),
        2,
    ),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", COUNTS)
def test_the_samples_of_a_batch_are_counted(kind: str) -> None:
    batch, count = COUNTS[kind]
    assert sample_count(batch) == count
