"""The first mistakes that a user makes: each is refused before training, with what to write."""

import copy
import re
from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from pbcompress import CompressConfig, Data, DendriteConfig, Task, compress, recover_
from pbcompress.errors import CompressionError, DivergedError
from pbcompress.training.batch_statistics import Sample, reestimate_batchnorm_
from pbcompress.training.batch_tensors import moved
from pbcompress.training.data_checks import check_data, scored
from pbcompress.training.first_mistakes import described
from pbcompress.training.task import accuracy
from tests.support.configs import recovery_of

CPU, N, C = torch.device("cpu"), 12, 3
F = nn.functional
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % C
VALUES, HITS = X[:, 0] * 3, (X[:, 0] > 0).long()
BCE = F.binary_cross_entropy_with_logits


class Net(nn.Module):
    """Has an output of any form, made of scores of shape (N, outputs)."""

    def __init__(self, outputs: int = C, form: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.form = nn.Linear(4, outputs), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.fc(x))


class InTraining(Net):
    """Returns scores in training, and what a function makes of them elsewhere."""

    def __init__(self, form: Callable[[Tensor], Tensor], outputs: int) -> None:
        super().__init__(outputs, form)

    def forward(self, x: Tensor) -> Any:
        return self.fc(x) if self.training else self.form(self.fc(x))


def tokens(y: Tensor) -> Tensor:
    """Scores of five tokens, classes last."""
    return y[:, None] + torch.zeros(1, 5, 1)


def mean_square(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def regression(loss: Any = F.mse_loss, metric: Any = mean_square) -> Task:
    return Task(loss=loss, metric=metric, higher_is_better=False)


def flat_loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


EIGHT = torch.randn(N, 8, 8, 3)
# what is wrong: network, inputs, targets, task, and what the message must say
MISTAKES: dict[str, tuple[nn.Module, Any, Any, Task, tuple[str, ...]]] = {
    "float labels": (Net(), X, Y.float(), Task(), ("float32 (12,)", "target.long()")),
    "one-hot": (Net(), X, F.one_hot(Y, C), Task(), ("int64 (12, 3)", "target.argmax(1)")),
    "float one-hot": (
        Net(), X, F.one_hot(Y, C).float(), Task(), ("(12, 3)", "target.argmax(1)"),
    ),
    "a column": (Net(), X, Y[:, None], Task(), ("int64 (12, 1)", "target.squeeze(1)")),
    "a float column": (
        Net(), X, Y[:, None].float(), Task(), ("float32 (12, 1)", "target.squeeze(1).long()"),
    ),
    "int32": (Net(), X, Y.int(), Task(), ("int32 (12,)", "target.long()")),
    "int16": (Net(), X, Y.short(), Task(), ("int16 (12,)", "target.long()")),
    "bool": (Net(2), X, HITS.bool(), Task(), ("bool (12,)", "target.long()")),
    "from one": (Net(), X, Y + 1, Task(), ("from 1 to 3", "0 to 2", "target - 1")),
    "too large": (Net(), X, Y + 4, Task(), ("from 4 to 6", "a score for every class")),
    "negative": (Net(), X, Y - 1, Task(), ("from -1 to 1", "ignore_index")),
    "values with a cross entropy": (
        Net(), X, VALUES, Task(), ("class numbers", "float32 (12,)", "F.mse_loss"),
    ),
    "one score with a cross entropy": (
        Net(1), X, HITS, Task(), ("two class scores or more", "binary_cross_entropy"),
    ),
    "several labels with a cross entropy": (
        Net(), X, torch.ones(N, C).long(), Task(), ("(12, 3)", "binary_cross_entropy"),
    ),
    "maps one-hot last": (
        Net(C, lambda y: y[:, :, None, None]), X, F.one_hot(Y, C)[:, None, None], Task(),
        ("(12, 1, 1, 3)", "target.argmax(-1)"),
    ),
    "scores behind an axis of one": (
        Net(C, lambda y: y[:, None]), X, Y, Task(), ("scores of shape (12, 3)", ".flatten(1)"),
    ),
    "scores of one position": (
        Net(C, lambda y: y[:, :, None, None]), X, Y, Task(), ("shape (12, 3)", ".flatten(1)"),
    ),
    "probabilities": (
        Net(C, lambda y: y.softmax(1)), X, Y, Task(), ("before a softmax", "o.clamp_min(1e-7)"),
    ),
    "probabilities, in a loss of one's own": (
        Net(C, lambda y: y[:, None].softmax(-1)), X, Y[:, None],
        Task(loss=flat_loss, metric=flat_loss),
        ("before a softmax", "these went through one", "F.nll_loss(o.clamp_min(1e-7).log(), t)"),
    ),
    "a softmax along another axis": (
        Net(C, lambda y: y.softmax(0)), X, Y, Task(), ("before a softmax", "without softmax"),
    ),
    "a sigmoid before a loss of scores": (
        Net(1, torch.sigmoid), X, HITS[:, None].float(), Task(loss=BCE, metric=BCE),
        ("before a sigmoid", "without sigmoid", "F.binary_cross_entropy(o, t)", "float32 (12, 1)"),
    ),
    "a sigmoid before the layer of that loss": (
        Net(1, lambda y: nn.Sigmoid()(y).squeeze(1)), X, HITS.float(),
        Task(loss=nn.BCEWithLogitsLoss(), metric=BCE), ("before a sigmoid",),
    ),
    "a sigmoid before that loss in one's own": (
        Net(C, torch.sigmoid), X, HITS,
        Task(loss=lambda o, t: BCE(o[:, 0].clamp(0.01, 0.99), t.float()), metric=flat_loss),
        ("before a sigmoid",),
    ),
    "a softmax before a loss of labels": (
        Net(C, lambda y: y.softmax(1)), X, torch.ones(N, C),
        Task(loss=nn.MultiLabelSoftMarginLoss(), metric=BCE), ("before a softmax",),
    ),
    "scores for logarithms": (
        Net(), X, Y, Task(loss=F.nll_loss), ("logarithms of", "F.cross_entropy"),
    ),
    "half precision": (Net().half(), X, Y, Task(), ("are float16", "model.float()")),
    "classes last": (
        Net(C, tokens), X, Y[:, None].repeat(1, 5), Task(),
        ("classes on axis 1", "(12, 5, 3)", "o.flatten(0, -2)"),
    ),
    "out of range in a loss of one's own": (
        Net(C, tokens), X, Y[:, None].repeat(1, 5) + 1, Task(loss=flat_loss, metric=flat_loss),
        ("from 1 to 3", "target - 1"),
    ),
    "labels of a logistic loss": (
        Net(1), X, HITS[:, None], Task(loss=BCE, metric=BCE), ("int64 (12, 1)", "target.float()"),
    ),
    "a flat target of a logistic loss": (
        Net(1), X, HITS.float(), Task(loss=BCE, metric=BCE), ("(12, 1)", "target.unsqueeze(-1)"),
    ),
    "accuracy of a logistic loss": (
        Net(1), X, HITS[:, None].float(), Task(loss=BCE), ("accuracy", "((o > 0) == (t > 0.5))"),
    ),
    "accuracy of several labels": (
        Net(), X, torch.ones(N, C), Task(loss=BCE), ("accuracy", "((o > 0) == (t > 0.5))"),
    ),
    "accuracy of values": (Net(2), X, VALUES, Task(loss=lambda o, t: o.sum()), ("F.mse_loss",)),
    "a flat target of a squared error": (
        Net(1), X, VALUES, regression(), ("(12, 1)", "(12,)", "target.unsqueeze(-1)"),
    ),
    "a flat target of one's own error": (
        Net(1), X, VALUES, regression(mean_square), ("(12, 1)", "(12,)", "target.unsqueeze(-1)"),
    ),
    "a flat output": (
        Net(1, lambda y: y.squeeze(1)), X, VALUES[:, None], regression(mean_square),
        ("(12,)", "(12, 1)", "target.squeeze(-1)"),
    ),
    "a metric across samples": (
        Net(1), X, VALUES, regression(lambda o, t: F.mse_loss(o[:, 0], t)),
        ("Data.val", "(12, 1)", "target.unsqueeze(-1)"),
    ),
    "values of another width": (
        Net(C), X, VALUES[:, None], regression(), ("(12, 3)", "(12, 1)", "shape (12, 3)"),
    ),
    "a tuple": (
        Net(C, lambda y: (y, y)), X, Y, Task(),
        ("a tuple of float32 (12, 3)", "model(batch[0])[0]"),
    ),
    "a dict": (
        Net(C, lambda y: {"scores": y}), X, Y, Task(), ("scores: float32", "(batch[0])['scores']"),
    ),
    "nothing": (Net(C, lambda y: None), X, Y, Task(), ("a NoneType", "a forward with a return")),
    "a class of losses": (
        Net(), X, Y, Task(loss=nn.CrossEntropyLoss), ("not the class", "Write CrossEntropyLoss()"),
    ),
    "scores for probabilities": (
        Net(1, lambda y: y + 5), X, HITS[:, None].float(),
        Task(loss=F.binary_cross_entropy, metric=BCE),
        ("probabilities", "F.binary_cross_entropy_with_logits"),
    ),
    "numpy": (Net(), X.numpy(), Y.numpy(), Task(), ("numpy float32 (12, 4)", "torch.as_tensor")),
    "numpy labels": (Net(), X, Y.numpy(), Task(), ("numpy int64 (12,)", "torch.as_tensor")),
    "float64": (Net(), X.double(), Y, Task(), ("float64 (12, 4)", "x.float()")),
    "bytes": (Net(), X.byte(), Y, Task(), ("uint8 (12, 4)", "x.float()")),
    "a list of numbers": (
        Net(), X, Y.tolist(), Task(), ("a list of 12 int", "torch.tensor(target)"),
    ),
    "a list of names": (
        Net(), X, ["a"] * N, Task(), ("a list of 12 str", "names.index(name)"),
    ),
    "images without an axis of channels": (
        nn.Sequential(nn.Conv2d(1, C, 8), nn.Flatten()), EIGHT[..., 0], Y, Task(),
        ("(12, 8, 8)", "x.unsqueeze(1)"),
    ),
    "images of other channels": (
        nn.Sequential(nn.Conv2d(1, C, 8), nn.Flatten()), EIGHT.permute(0, 3, 1, 2), Y, Task(),
        ("(12, 3, 8, 8)", "1 channels on axis 1"),
    ),
    "indices that are too large": (
        nn.Sequential(nn.Embedding(3, C), nn.Flatten(), nn.Linear(C, C)), Y[:, None] + 2, Y, Task(),
        ("from 2 to 4", "has 3 rows", "from 0 to 2"),
    ),
    "channels last": (
        nn.Sequential(nn.Conv2d(3, C, 8), nn.Flatten()), EIGHT, Y, Task(),
        ("(12, 8, 8, 3)", "x.permute(0, 3, 1, 2)"),
    ),
    "a sample and a number": (Net(), X[0], 1, Task(), ("a int", "DataLoader(data_set")),
    "a sample": (Net(), X[0], Y[0], Task(), ("float32 (3,)", "DataLoader(data_set")),
    "another width": (Net(), X[:, :3], Y, Task(), ("float32 (12, 3)", "inputs of the shape")),
    "a triple": (Net(), X, Y, Task(forward=lambda m, b: m(*b)), ("Task(forward=...)",)),
    "an undefined metric": (
        Net(), X, Y, Task(metric=lambda o, t: float("nan")),
        ("returned nan", "Data.val", "are finite", "write a metric"),
    ),
    "a metric of another form": (
        Net(), X, Y, Task(metric=lambda o, t: o["a"]),
        ("Task.metric", "Data.val", "float32 (12, 3)"),
    ),
}  # fmt: skip


def test_the_table_is_whole() -> None:
    assert len(MISTAKES) == 59


@pytest.mark.parametrize("samples", [None, 8], ids=["whole", "few"])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_with_split_shapes_and_what_to_write(name: str, samples: Any) -> None:
    model, x, y, task, parts = MISTAKES[name]
    model, split = copy.deepcopy(model), [(x, y)]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CompressionError) as caught:
        check_data(Data(split, split), task, model, CPU, samples=samples)
    message = str(caught.value)
    assert not isinstance(caught.value, DivergedError)
    assert "Data." in message
    assert "lr" not in message
    for part in parts:
        assert part in message
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


FINE: dict[str, tuple[nn.Module, Any, Any, Task]] = {
    "classes": (Net(), X, Y, Task()),
    "bytes as labels": (Net(), X, Y.byte(), Task()),
    "shares of classes": (
        Net(), X, torch.rand(N, C).softmax(1),
        Task(metric=lambda o, t: (o.argmax(1) == t.argmax(1)).float().mean()),
    ),
    "logarithms of probabilities": (
        Net(C, lambda y: y.log_softmax(1)), X, Y, Task(loss=nn.NLLLoss()),
    ),
    "logarithms with a cross entropy": (Net(C, lambda y: y.log_softmax(1)), X, Y, Task()),
    "probabilities in eval mode alone": (InTraining(torch.sigmoid, 1), X, HITS[:, None].float(),
        Task(loss=BCE, metric=F.binary_cross_entropy)),
    "probabilities of classes in eval mode alone": (
        InTraining(lambda y: y.softmax(1), C), X, Y, Task(),
    ),
    "probabilities with their loss": (
        Net(1, torch.sigmoid), X, HITS[:, None].float(),
        Task(loss=F.binary_cross_entropy, metric=F.binary_cross_entropy),
    ),
    "a gate that is scaled": (
        Net(1, lambda y: 8 * y.sigmoid() - 4), X, HITS[:, None].float(), Task(loss=BCE, metric=BCE),
    ),
    "left out": (Net(), X, torch.where(Y == 1, -100, Y), Task()),
    "left out by another number": (
        Net(), X, torch.where(Y == 1, 255, Y),
        Task(loss=nn.CrossEntropyLoss(ignore_index=255), metric=lambda o, t: 0.5),
    ),
    "a loss that turns float labels": (
        Net(), X, Y.float(), Task(loss=lambda o, t: F.cross_entropy(o, t.long())),
    ),
    "a loss that squeezes": (
        Net(1), X, VALUES, regression(*(lambda o, t: F.mse_loss(o[:, 0], t),) * 2),
    ),
    "tokens": (
        Net(C, tokens), X, Y[:, None].repeat(1, 5),
        Task(loss=flat_loss, metric=lambda o, t: (o.argmax(-1) == t).float().mean()),
    ),
    "values": (Net(1), X, VALUES[:, None], regression()),
    "values in float64": (Net(1), X, VALUES[:, None].double(), regression()),
    "several labels": (Net(), X, torch.ones(N, C), Task(loss=BCE, metric=BCE)),
    "numpy, turned": (
        Net(), X.numpy(), Y.numpy(),
        Task(forward=lambda m, b: (m(torch.as_tensor(b[0])), torch.as_tensor(b[1]))),
    ),
    "heads": (
        Net(C, lambda y: {"a": y, "b": y[:, :1]}), X, {"a": Y, "b": VALUES[:, None]},
        Task(
            loss=lambda o, t: F.cross_entropy(o["a"], t["a"]) + F.mse_loss(o["b"], t["b"]),
            metric=lambda o, t: accuracy(o["a"], t["a"]),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FINE)
def test_what_is_no_mistake_passes(name: str) -> None:
    model, x, y, task = FINE[name]
    check_data(Data([(x, y)], [(x, y)]), task, model, CPU)


def test_compress_and_recover_say_it_before_they_change_anything() -> None:
    for call in (
        lambda m, d: compress(m, 0.5, data=d, progress=False),
        lambda m, d: recover_(m, d),
    ):
        model, split = Net(), [(X, Y.float())]
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(CompressionError, match=r"batch of Data\.train.*target\.long"):
            call(model, Data(split, split))
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"loss": "cross_entropy"},
            r"Task\.loss must be a function.*'cross_entropy'.*F\.cross_ent",
        ),
        ({"metric": "accuracy"}, r"Task\.metric must be a function of \(output, target\)"),
        ({"metric": None}, r"Task\.metric must be a function"),
        ({"forward": "logits"}, r"Task\.forward must be a function of \(model, batch\)"),
    ],
)
def test_what_is_no_function_is_refused_when_it_is_given(choices: Any, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        Task(**choices)


@pytest.mark.parametrize(
    ("batch", "write"),
    [
        ({"x": X, "y": Y}, "lambda m, b: (m(b['x']), b['y'])"),
        ({"a": X, "mask": X, "labels": Y}, "k != 'labels'}), b['labels'])"),
        (UserDict(x=X, target=Y), "(m(b['x']), b['target'])"),
        ({"x": X}, "a dict with x. Pass Task(forward=...)"),
    ],
)
def test_a_batch_that_is_a_dict_gets_its_forward_told(batch: Any, write: str) -> None:
    with pytest.raises(CompressionError, match=re.escape(write)):
        check_data(Data([batch], [batch]), Task(), Net(), CPU)


class Tokens(UserDict[str, Any]):
    """As a tokenizer gives a batch."""

    def to(self, device: Any) -> "Tokens":
        return Tokens({name: value.to(device) for name, value in self.items()})


def test_a_batch_of_a_tokenizer_is_moved_and_gives_named_inputs() -> None:
    batch = (Tokens(x=X), Y)
    assert moved(batch, torch.device("meta"))[0]["x"].is_meta
    assert torch.equal(Task().run(Net(), batch)[0], Net()(X))


@pytest.mark.parametrize("is_loader", [False, True])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_a_batch_of_one_sample_is_named_before_a_batchnorm_meets_it(
    norm: Any, is_loader: bool
) -> None:
    model = nn.Sequential(nn.Linear(4, 8), norm(8), nn.Linear(8, C))
    split: Any = list(zip(X.split(11), Y.split(11), strict=True))
    if is_loader:
        split = DataLoader(list(zip(X, Y, strict=True)), batch_size=11)
    data = Data(split, [(X, Y)])
    if norm is nn.LayerNorm:
        check_data(data, Task(), model, CPU)
        return
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CompressionError, match=r"one sample in batch 1 of Data\.train.*drop_last"):
        check_data(data, Task(), model, CPU)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_batch_of_one_sample_that_could_not_be_foreseen_is_named() -> None:
    class Unforeseen:
        def __iter__(self) -> Iterator[Any]:
            return iter(zip(X.split(11), Y.split(11), strict=True))

    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, C))
    with pytest.raises(CompressionError, match=r"one sample in batch 1 of Data\.train.*drop_last"):
        recover_(model, Data(Unforeseen(), [(X, Y)]), config=SMALL)


def test_labels_that_are_left_out_do_not_count_in_the_accuracy() -> None:
    target = torch.tensor([0, -100, 2, 1])
    assert accuracy(torch.eye(4)[:, :3], target) == pytest.approx(2 / 3)


# --- a later batch --------------------------------------------------------------------------------


def later(bad: tuple[Any, Any], number: int = 2) -> list[tuple[Any, Any]]:
    split = [(X, Y) for _ in range(4)]
    split[number] = bad
    return split


NAN = (torch.full_like(X, float("nan")), Y)
SMALL = CompressConfig(dendrites=DendriteConfig(max_sets=0), recovery=recovery_of(epochs=2))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (NAN, r"NaN or infinity in batch 2 of Data\.train"),
        ((X, Y + 1), r"batch 2 of Data\.train.*from 1 to 3.*target - 1"),
        ((X, Y.float()), r"batch 2 of Data\.train.*target\.long"),
        ((X, Y[:, None]), r"batch 2 of Data\.train.*target\.squeeze"),
    ],
    ids=["nan", "range", "float", "column"],
)
def test_a_later_batch_is_named_by_its_own_number(bad: Any, message: str) -> None:
    with pytest.raises(CompressionError, match=message) as caught:
        recover_(Net(), Data(later(bad), [(X, Y)]), config=SMALL)
    assert not isinstance(caught.value, DivergedError)


def test_inputs_and_targets_that_are_no_batches_are_named() -> None:
    with pytest.raises(CompressionError, match=r"Data\.train must be batches.*TensorDataset"):
        check_data(Data((X, Y), (X, Y)), Task(), Net(), CPU)
    inputs = Task(
        forward=lambda m, b: (m(b), Y)
    )  # two batches of inputs, for a forward of one's own
    check_data(Data([X, X], [X, X]), inputs, Net(), CPU)


@pytest.mark.parametrize("metric", [accuracy, lambda o, t: o.sum()], ids=["accuracy", "sum"])
def test_a_nan_in_a_later_batch_of_validation_is_named(metric: Any) -> None:
    data, task = Data([(X, Y)], later(NAN, 3)), Task(metric=metric)
    for call in (
        lambda: recover_(Net(), data, task, config=SMALL),
        lambda: scored(Net(), data.val, "val", task),
        lambda: compress(Net(), 0.5, data=data, task=task, progress=False),
    ):
        with pytest.raises(CompressionError, match=r"infinity in batch 3 of Data\.val") as caught:
            call()
        assert not isinstance(caught.value, DivergedError)


def test_whatever_goes_through_batches_names_the_bad_one() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, C))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CompressionError, match=r"batch 2 of Data\.train"):
        reestimate_batchnorm_(model, later(NAN))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.raises(CompressionError, match=r"batch 2 of Data\.train"):
        Sample(later(NAN), Task(), 4).each(model, lambda batch: None)


def test_another_error_in_a_later_batch_keeps_its_type_and_gets_a_note() -> None:
    with pytest.raises(RuntimeError) as caught:
        recover_(Net(), Data(later((X[:, :2], Y)), [(X, Y)]), config=SMALL)
    assert caught.value.__notes__ == ["This was batch 2 of Data.train."]


# --- a metric that is not defined -----------------------------------------------------------------


def ranks(output: Tensor, target: Tensor) -> float:
    """Share of pairs of a hit and a miss in right order; wants both."""
    hits, misses = output[target == 1, 1], output[target == 0, 1]
    if not len(hits) or not len(misses):
        raise ValueError("one class alone")
    return float((hits[:, None] > misses).float().mean())


def nan_of_ranks(output: Tensor, target: Tensor) -> float:
    return ranks(output, target) if len(target.unique()) > 1 else float("nan")


RARE = [(X, torch.zeros(N).long()), (X, torch.zeros(N).long()), (X, HITS)]
NEVER = [(X, torch.zeros(N).long())] * 3


@pytest.mark.parametrize("metric", [ranks, nan_of_ranks])
def test_few_positives_are_enough_if_the_split_has_some(metric: Any) -> None:
    task, data = Task(metric=metric), Data([(X, HITS)], RARE, RARE)
    check_data(data, task, Net(2), CPU)
    history = recover_(Net(2), data, task, config=SMALL)
    assert all(0 <= record["metric"] <= 1 for record in history)


@pytest.mark.parametrize("metric", [ranks, nan_of_ranks])
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_without_positives_is_refused_before_the_first_epoch(
    metric: Any, split: str
) -> None:
    splits = {"train": [(X, HITS)], "val": RARE, "test": RARE} | {split: NEVER}
    model = Net(2)
    before = copy.deepcopy(model.state_dict())
    match = rf"all 36 samples of Data\.{split}.*float32 \(36, 2\)"
    with pytest.raises(CompressionError, match=match):
        recover_(model, Data(**splits), Task(metric=metric), config=SMALL)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_metric_that_becomes_undefined_is_not_blamed_on_the_rate() -> None:
    calls: list[int] = []

    def metric(output: Tensor, target: Tensor) -> float:
        calls.append(1)
        return 0.5 if len(calls) < 3 else float("nan")

    with pytest.raises(CompressionError, match="write a metric that returns a number") as caught:
        recover_(Net(), Data([(X, Y)], [(X, Y)]), Task(metric=metric), config=SMALL)
    assert not isinstance(caught.value, DivergedError)
    assert "lr" not in str(caught.value)


def test_outputs_that_are_no_numbers_are_divergence() -> None:
    model = Net()
    nn.init.constant_(model.fc.weight, float("inf"))
    task = Task(metric=lambda o, t: o.sum())
    with pytest.raises(DivergedError, match=r"Data\.val.*outputs .* have a NaN or infinity"):
        scored(model, [(X, Y)], "val", task)


# --- streams --------------------------------------------------------------------------------------


class Once:
    """Ends after one pass, and each iterator is another object."""

    def __init__(self, count: int = 4) -> None:
        self.rest = iter([(X + i, Y) for i in range(count)])

    def __iter__(self) -> Iterator[Any]:
        yield from self.rest


class Same(Once):
    """Hands out the same iterator each time."""

    def __iter__(self) -> Iterator[Any]:
        return self.rest


class Samples(IterableDataset[Any]):
    """A stream of samples that ends."""

    def __init__(self) -> None:
        self.rest = iter([(X[i % N], Y[i % N]) for i in range(5 * N)])

    def __iter__(self) -> Iterator[Any]:
        return self.rest


class Anew(IterableDataset[Any]):
    """Starts anew, and draws other samples each time."""

    def __init__(self) -> None:
        self.own = np.random.default_rng(0)

    def __iter__(self) -> Iterator[Any]:
        for i in range(2 * N):
            yield X[i % N] + float(self.own.normal()), Y[i % N]


STREAMS: dict[str, Callable[[], Any]] = {
    "generators of one iterator": Once,
    "one iterator": Same,
    "samples": lambda: DataLoader(Samples(), batch_size=N),
}


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_ends_is_refused_before_the_first_epoch(name: str, split: str) -> None:
    splits = {"train": [(X, Y)], "val": [(X, Y)], "test": [(X, Y)]} | {split: STREAMS[name]()}
    with pytest.raises(CompressionError, match=rf"Data\.{split} ends after one pass.*DataLoader"):
        check_data(Data(**splits), Task(), Net(), CPU)


def test_a_stream_that_starts_anew_may_draw_other_samples() -> None:
    split = DataLoader(Anew(), batch_size=N)
    assert len(recover_(Net(), Data(split, split), config=SMALL)) == 2


def test_values_are_described_in_few_words() -> None:
    many = {"abcdefg"[i]: torch.zeros(i) for i in range(6)}
    assert described(many) == (
        "a dict of a: float32 (0,), b: float32 (1,), c: float32 (2,) and 3 more"
    )
    assert described([np.zeros((2, 3)), 1.0]) == "a list of numpy float64 (2, 3) and a float"
