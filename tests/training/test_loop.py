"""Data, task, one epoch and the learning rate."""

import random
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pbcompress import (
    CompressConfig,
    DendriteConfig,
    DistillationConfig,
    EngineConfig,
    OptimizerConfig,
    RecoveryConfig,
    recover_,
)
from pbcompress.core.processes import Processes
from pbcompress.errors import CompressionError, DivergedError
from pbcompress.training.data_checks import check_data
from pbcompress.training.distillation import make_objective
from pbcompress.training.engine import Engine
from pbcompress.training.loop import (
    Stepper,
    _shares,
    evaluate,
    lr_factor,
    make_optimizer,
    train_epoch,
)
from pbcompress.training.task import Data, Task, accuracy, inputs_of
from tests.support.configs import recovery_of

CPU = torch.device("cpu")
MSE = nn.functional.mse_loss


def make_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)
    )


def batches(count: int = 3, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(size, 4), torch.randint(3, (size,))) for _ in range(count)]


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr)


class Noting(Stepper):
    """Notes where in the epoch each step is."""

    def __init__(self, *args: Any, **choices: Any) -> None:
        super().__init__(*args, **choices)
        self.seen: list[float] = []

    def begin_step(self, progress: float) -> None:
        super().begin_step(progress)
        self.seen.append(progress)


def stepper(model: nn.Module, optimizer: Any = None, **choices: Any) -> Noting:
    config = recovery_of(**({"schedule": "constant"} | choices))
    return Noting(Engine(), model, optimizer or sgd(model), config, length=1)


def train(model: nn.Module, loader: Any, task: Task | None = None, **choices: Any) -> Any:
    seed, steps = choices.pop("seed", (0,)), choices.pop("steps", None)
    objective = make_objective(task or Task(), DistillationConfig(), None)
    return train_epoch(steps or stepper(model, **choices), loader, objective, seed=seed)


def random_states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), kind, keys.tolist(), rest


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


# --- task -----------------------------------------------------------------------------------------


def test_the_default_is_classification() -> None:
    task, logits, target = Task(), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(task.loss(logits, target), nn.functional.cross_entropy(logits, target))
    assert task.metric(logits, target) == (logits.argmax(1) == target).float().mean()
    assert task.metric_name == "accuracy"
    assert task.score(0.25) == 0.25


def test_accuracy_of_maps_counts_every_pixel() -> None:
    output, target = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
    output[:, 1] = 1
    target[0] = 1
    assert accuracy(output, target) == 0.5


@pytest.mark.parametrize("value", [-1.5, 0.0, 2.0])
def test_a_lower_metric_gives_a_higher_score_where_lower_is_better(value: float) -> None:
    assert Task(metric=MSE, higher_is_better=False).score(value) == -value


def test_a_metric_has_a_name_of_its_own_or_its_function() -> None:
    assert Task(metric=MSE, name="error").metric_name == "error"
    assert Task(metric=MSE).metric_name == "mse_loss"


class Adder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.scale * (a + 10 * b)


ONE, TWO, TARGET = torch.ones(2, 1), torch.full((2, 1), 2.0), torch.zeros(2, 1)
BATCHES = {
    "a tuple of inputs": ((ONE, TWO), TARGET),
    "a list of inputs": [[ONE, TWO], TARGET],
    "a dict of inputs": ({"b": TWO, "a": ONE}, TARGET),
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_inputs_may_be_several(batch: Any) -> None:
    output, target = Task().run(Adder(), batch)
    assert output.tolist() == [[21.0], [21.0]]
    assert target is TARGET


def test_inputs_may_be_one_tensor() -> None:
    output, _ = Task().run(nn.Identity(), (ONE, TARGET))
    assert output is ONE


def test_a_forward_of_ones_own_takes_any_batch() -> None:
    task = Task(forward=lambda model, batch: (model(batch["x"], batch["x"]), batch["y"]))
    output, target = task.run(Adder(), {"x": ONE, "y": TARGET})
    assert output.tolist() == [[11.0], [11.0]]
    assert target is TARGET


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        (ONE, "a Tensor"),
        ((ONE,), "a tuple of 1"),
        ([ONE, TWO, TARGET], "a list of 3"),
        ({"image": ONE, "label": TWO}, "a dict with image, label"),
    ],
)
def test_another_batch_is_described_and_forward_is_pointed_out(batch: Any, found: str) -> None:
    with pytest.raises(CompressionError) as caught:
        Task().run(Adder(), batch)
    assert f"the loader yielded {found}." in str(caught.value)
    assert "Pass Task(forward=...)" in str(caught.value)


# --- evaluate -------------------------------------------------------------------------------------


def test_the_metric_sees_the_whole_split_at_once() -> None:
    seen = []

    def worst(output: Tensor, target: Tensor) -> float:
        seen.append((tuple(output.shape), tuple(target.shape)))
        return float((output - target).abs().max())

    data = [(torch.full((n, 2), float(n)), torch.zeros(n, 2)) for n in (3, 5, 1)]
    model = nn.Sequential(nn.Linear(2, 2))
    nn.init.eye_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    assert evaluate(model, data, Task(metric=worst)) == (5.0, 9)
    assert seen == [((9, 2), (9, 2))]


def test_uneven_batches_do_not_weigh_more_than_their_samples() -> None:
    model = nn.Sequential(nn.Linear(1, 2))
    nn.init.constant_(model[0].weight, 0)
    model[0].bias.data = torch.tensor([1.0, 0.0])
    data = [(torch.zeros(9, 1), torch.zeros(9).long()), (torch.zeros(1, 1), torch.ones(1).long())]
    assert evaluate(model, data, Task())[0] == pytest.approx(0.9)


def test_outputs_of_any_structure_are_joined() -> None:
    def forward(model: nn.Module, x: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        y = model(x)
        return {"y": [y, y.mean()], "kind": "regression"}, {"y": x, "none": None}

    def metric(output: Any, target: Any) -> int:
        assert (output["kind"], target["none"]) == ("regression", None)
        assert output["y"][0].shape == (12, 4)
        return len(output["y"][1])  # one mean for each batch

    model = nn.Linear(4, 4)
    task = Task(forward=forward, metric=metric)
    assert evaluate(model, [torch.randn(4, 4) for _ in range(3)], task) == (3.0, 12)


def test_what_cannot_be_joined_is_refused_rather_than_dropped() -> None:
    task = Task(forward=lambda model, x: (model(x), {1, 2}), metric=lambda o, t: 0.0)
    with pytest.raises(CompressionError, match="the target has a set, which cannot be joined"):
        evaluate(nn.Linear(4, 4), [torch.randn(4, 4) for _ in range(2)], task)


def test_evaluation_is_in_eval_mode_and_leaves_every_mode_as_it_was() -> None:
    model = make_model().train()
    model[1].eval()
    modes, seen = [m.training for m in model.modules()], []
    model[3].register_forward_hook(lambda m, *_: seen.append(m.training))
    evaluate(model, batches(), Task())
    assert not any(seen)
    assert len(seen) == 3
    assert [m.training for m in model.modules()] == modes


def test_evaluation_leaves_statistics_and_gradients() -> None:
    model = make_model().train()
    before = snapshot(model)
    evaluate(model, batches(), Task())
    assert equal(snapshot(model), before)
    assert all(p.grad is None for p in model.parameters())


def test_modes_are_given_back_when_the_metric_fails() -> None:
    def broken(output: Tensor, target: Tensor) -> float:
        raise KeyError("broken")

    model = make_model().train()
    with pytest.raises(KeyError):
        evaluate(model, batches(), Task(metric=broken))
    assert all(m.training for m in model.modules())


def noisy(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Draw from all three random sources, as an augmentation may."""
    noise = random.random() + np.random.rand() + torch.randn(())
    return model(batch[0] + noise), batch[1]


def test_evaluation_leaves_the_random_states_and_repeats_itself() -> None:
    model, data = make_model(), batches()
    task = Task(forward=noisy, metric=nn.functional.cross_entropy)
    before = random_states()
    first = evaluate(model, data, task)
    assert random_states() == before
    torch.manual_seed(77)
    assert evaluate(model, data, task) == first


def test_an_empty_split_cannot_be_scored() -> None:
    with pytest.raises(CompressionError, match="yielded no batch"):
        evaluate(make_model(), [], Task())


def test_a_metric_that_is_no_number_is_shown() -> None:
    with pytest.raises(CompressionError, match=r"must return one number; it returned 'good'"):
        evaluate(make_model(), batches(), Task(metric=lambda o, t: "good"))


# --- check_data -----------------------------------------------------------------------------------


def once() -> Iterator[Any]:
    yield from batches()


NAN = [(torch.full((2, 4), float("nan")), torch.zeros(2).long())]
GOOD = batches()
BAD: dict[str, tuple[Data, Task, tuple[str, ...]]] = {
    "empty train": (Data([], GOOD), Task(), ("Data.train", "no batch", "Give")),
    "empty val": (Data(GOOD, []), Task(), ("Data.val", "no batch", "Give")),
    "empty test": (Data(GOOD, GOOD, []), Task(), ("Data.test", "no batch", "Give")),
    "generator": (Data(once(), GOOD), Task(), ("Data.train", "ends after one pass", "DataLoader")),
    "iterator": (Data(GOOD, iter(GOOD)), Task(), ("Data.val", "ends after one", "DataLoader")),
    "none": (Data(None, GOOD), Task(), ("Data.train", "found NoneType", "list")),  # type: ignore
    "no val": (Data(GOOD, None), Task(), ("Data.val", "found NoneType", "list")),  # type: ignore
    "number": (Data(3, GOOD), Task(), ("Data.train", "found int", "must be")),  # type: ignore
    "bare tensors": (
        Data([torch.zeros(2, 4)], GOOD),
        Task(),
        ("(inputs, target) was expected", "yielded a Tensor", "Pass Task(forward"),
    ),
    "nan in train": (Data(NAN, GOOD), Task(), ("NaN", "first batch of Data.train", "Clean")),
    "nan in val": (Data(GOOD, NAN), Task(), ("NaN", "first batch of Data.val", "Clean")),
    "loss of a vector": (
        Data(GOOD, GOOD),
        Task(loss=lambda o, t: o.sum(1)),
        ("must return a scalar", "shape (8,)", "Reduce it"),
    ),
    "loss of a float": (
        Data(GOOD, GOOD),
        Task(loss=lambda o, t: 1.0),  # type: ignore
        ("must return a scalar", "returned float", "Reduce it"),
    ),
    "loss without gradient": (
        Data(GOOD, GOOD),
        Task(loss=lambda o, t: o.detach().sum()),
        ("Task.loss", "without gradient", "Use torch operations"),
    ),
    "loss of infinity": (
        Data(GOOD, GOOD),
        Task(loss=lambda o, t: o.sum() + float("inf")),
        ("must return a finite number", "returned inf", "Check"),
    ),
    "metric of a vector": (
        Data(GOOD, GOOD),
        Task(metric=lambda o, t: o),
        ("Task.metric must return one number", "it returned float32"),
    ),
    "metric of nothing": (
        Data(GOOD, GOOD),
        Task(metric=lambda o, t: None),
        ("Task.metric must return one number", "it returned None"),
    ),
}


def test_the_list_of_bad_data_is_whole() -> None:
    assert len(BAD) == 17


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_refused_with_what_was_asked_found_and_to_do(name: str) -> None:
    data, task, parts = BAD[name]
    with pytest.raises(CompressionError) as caught:
        check_data(data, task, make_model(), CPU)
    for part in parts:
        assert part in str(caught.value)


def test_good_data_passes_and_nothing_is_changed() -> None:
    model = make_model().train()
    before, states = snapshot(model), random_states()
    check_data(Data(GOOD, GOOD, GOOD), Task(forward=noisy), model, CPU)
    assert equal(snapshot(model), before)
    assert random_states() == states
    assert all(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_targets_that_are_whole_numbers_are_not_searched_for_nan() -> None:
    check_data(Data(GOOD, GOOD), Task(), make_model(), CPU)


@pytest.mark.parametrize("name", BAD)
def test_few_samples_are_enough_to_refuse_bad_data(name: str) -> None:
    data, task, parts = BAD[name]
    with pytest.raises(CompressionError) as caught:
        check_data(data, task, make_model(), CPU, samples=2)
    for part in parts:
        assert part in str(caught.value)


def test_a_quick_check_looks_at_few_samples_of_each_split() -> None:
    sizes: list[int] = []

    def forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        sizes.append(len(batch[0]))
        return model(batch[0]), batch[1]

    check_data(Data(GOOD, GOOD, GOOD), Task(forward=forward), make_model(), CPU, samples=2)
    assert sizes == [2, 2, 2]


@pytest.mark.parametrize("how", ["fails", "warns"])
def test_the_whole_batch_decides_where_a_metric_needs_more_samples(how: str) -> None:
    seen: list[int] = []

    def metric(output: Any, target: Any) -> float:
        seen.append(len(target))
        if len(target) < 8 and how == "fails":
            raise ValueError("one class alone")
        if len(target) < 8:
            warnings.warn("one class alone", stacklevel=2)
        return 0.5

    check_data(Data(GOOD, GOOD), Task(metric=metric), make_model(), CPU, samples=2)
    assert seen == [2, 8]


def test_inputs_are_taken_from_the_first_batch_of_any_forward() -> None:
    task = Task(forward=lambda model, batch: (model(batch[0], b=batch[1]), batch[1]))
    args, kwargs = inputs_of([(ONE, TWO)], task, Adder(), CPU)
    assert len(args) == 1
    assert torch.equal(args[0], ONE)
    assert list(kwargs) == ["b"]
    assert torch.equal(kwargs["b"], TWO)


def test_a_forward_that_does_not_call_the_model_has_no_inputs() -> None:
    task = Task(forward=lambda model, batch: batch)
    with pytest.raises(CompressionError, match="Pass example_inputs"):
        inputs_of(GOOD, task, make_model(), CPU)


# --- one epoch ------------------------------------------------------------------------------------


def test_an_epoch_takes_one_step_a_batch_and_returns_the_mean_loss() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    twin, data, losses = nn.Linear(4, 3), batches(), []
    twin.load_state_dict(model[0].state_dict())
    optimizer = sgd(twin)
    for x, y in data:
        loss = nn.functional.cross_entropy(twin(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert train(model, data) == (pytest.approx(sum(losses) / 3), 3)
    assert torch.equal(model[0].weight, twin.weight)


def test_training_keeps_the_mode_that_it_finds() -> None:
    model = make_model().eval()
    before = model[1].running_mean.clone()
    train(model, batches())
    assert torch.equal(model[1].running_mean, before)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    data, results = batches(), []
    first = make_model()
    for seed in (("a", 1), ("a", 1), ("a", 2)):
        model = make_model()
        model.load_state_dict(first.state_dict())
        train(model.train(), data, Task(forward=noisy), seed=seed)
        results.append(snapshot(model))
        torch.randn(3)
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


def test_an_epoch_leaves_the_random_states() -> None:
    model, data = make_model(), batches()
    before = random_states()
    train(model.train(), data, Task(forward=noisy))
    assert random_states() == before


def loader(own: bool) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(5) if own else None
    data = TensorDataset(torch.arange(24.0).reshape(24, 1), torch.zeros(24, 1))
    return DataLoader(data, batch_size=5, shuffle=True, generator=generator)


@pytest.mark.parametrize("own", [True, False])
def test_a_shuffled_loader_has_one_order_for_each_seed(own: bool) -> None:
    def order(seed: int, source: DataLoader[Any]) -> list[float]:
        seen: list[float] = []

        def forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
            seen.extend(batch[0].flatten().tolist())
            return model(batch[0]), batch[1]

        train(
            nn.Linear(1, 1),
            source,
            Task(loss=MSE, forward=forward),
            optimizer=no_step(),
            seed=(seed,),
        )
        return seen

    source = loader(own)
    first = order(1, source)
    assert sorted(first) == list(range(24))
    assert order(2, source) != first
    assert order(1, source) == first
    assert order(1, loader(own)) == first


def no_step() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.0)


@pytest.mark.parametrize("use", [train, lambda m, d, t: evaluate(m, d, t)])
def test_the_generator_of_a_loader_gets_its_state_back(use: Callable[..., Any]) -> None:
    source = loader(own=True)
    state = source.generator.get_state()
    use(nn.Linear(1, 1), source, Task(loss=MSE, metric=MSE))
    assert torch.equal(source.generator.get_state(), state)


class Stream(IterableDataset[Any]):
    """Samples without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.ones(1), torch.zeros(1))] * 12)


def test_a_stream_without_a_length_trains_at_the_rate_of_mid_epoch() -> None:
    model, source = nn.Linear(1, 1), DataLoader(Stream(), batch_size=4)
    steps = stepper(model)
    _, count = train(model, source, Task(loss=MSE), steps=steps)
    assert (count, steps.seen) == (3, [0.5, 0.5, 0.5])


def test_the_rate_is_that_of_the_middle_of_each_step() -> None:
    model = make_model()
    steps = stepper(model)
    train(model, batches(4), steps=steps)
    assert steps.seen == [0.125, 0.375, 0.625, 0.875]


def test_gradients_are_clipped_together() -> None:
    model, data = nn.Sequential(nn.Linear(4, 3)), batches(1)
    before = snapshot(model)
    train(model, data, optimizer=sgd(model, 1.0), max_grad_norm=1e-3)
    moved = torch.cat([(model.state_dict()[k] - v).flatten() for k, v in before.items()])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)  # float32


def test_a_loss_that_is_no_number_on_good_data_is_divergence() -> None:
    task = Task(loss=lambda o, t: o.sum() * float("nan"))
    with pytest.raises(
        DivergedError, match=r"became nan on batch 0 of .*finite\. Lower OptimizerConfig\.lr"
    ):
        train(make_model(), batches(), task)


def test_bad_data_behind_a_bad_loss_is_named() -> None:
    data = [*batches(2), (torch.full((8, 4), float("inf")), torch.zeros(8).long())]
    with pytest.raises(CompressionError, match=r"batch 2 of Data\.train"):
        train(make_model(), data)


def test_an_epoch_without_a_batch_is_refused() -> None:
    with pytest.raises(CompressionError, match="yielded no batch"):
        train(make_model(), [])


# --- learning rate and optimizers -----------------------------------------------------------------

SCHEDULES = ("cosine", "linear", "constant")
configs = st.builds(
    OptimizerConfig,
    schedule=st.sampled_from(SCHEDULES),
    warmup=st.just(0.0) | st.floats(0.01, 0.99),
)


@given(config=configs, progress=st.floats(0, 1))
def test_the_rate_is_a_share_of_its_peak(config: OptimizerConfig, progress: float) -> None:
    assert 0 <= lr_factor(config, progress) <= 1


@given(config=configs)
def test_the_rate_has_no_jumps(config: OptimizerConfig) -> None:
    grid = [lr_factor(config, i / 10_000) for i in range(10_001)]
    # the steepest slope is 1 / 0.01 in the warm-up and pi / 2 / 0.01 after it
    assert max(abs(b - a) for a, b in pairwise(grid)) < 0.02


@pytest.mark.parametrize("schedule", SCHEDULES[:2])
def test_the_rate_rises_to_its_peak_and_falls_to_zero(schedule: Any) -> None:
    config = OptimizerConfig(schedule=schedule, warmup=0.2)
    factors = [lr_factor(config, p) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert factors == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-12)


def test_a_constant_rate_has_no_warm_up() -> None:
    config = OptimizerConfig(schedule="constant", warmup=0.5)
    assert {lr_factor(config, i / 10) for i in range(11)} == {1.0}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)],
)
@pytest.mark.parametrize("is_dendrite", [True, False])
def test_optimizers_are_the_configured_ones(name: Any, kind: type, is_dendrite: bool) -> None:
    config = OptimizerConfig(
        algorithm=name, lr=0.3, dendrite_lr=0.2, weight_decay=0.1, momentum=0.7
    )
    made = make_optimizer(list(nn.Linear(2, 2).parameters()), config, is_dendrite=is_dendrite)
    group = made.param_groups[0]
    assert type(made) is kind
    assert (group["lr"], group["weight_decay"]) == ((0.2, 0.0) if is_dendrite else (0.3, 0.1))
    assert group.get("momentum", 0.7) == 0.7


# --- accumulated batches --------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("sizes", [(4, 4, 4, 4, 4), (4, 4, 4, 3), (2, 7, 1), (5,)])
def test_steps_follow_the_mean_over_samples(group: int, sizes: tuple[int, ...]) -> None:
    """Against numpy: least squares in float64, each step on all rows of its batches."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(sizes), 3, generator=generator, dtype=torch.float64)
    y = torch.randn(sum(sizes), 1, generator=generator, dtype=torch.float64)
    split = list(zip(x.split(sizes), y.split(sizes), strict=True))
    model = nn.Linear(3, 1, bias=False).double()
    weight = model.weight.detach().numpy().T.copy()
    task = Task(loss=nn.functional.mse_loss)
    _, steps = train(model, split, task, accumulate=group, steps=None)
    for i in range(0, len(split), group):
        rows, wanted = (
            np.concatenate([part[k].numpy() for part in split[i : i + group]]) for k in (0, 1)
        )
        weight -= 0.1 * 2 / len(rows) * rows.T @ (rows @ weight - wanted)
    assert steps == -(-len(split) // group)
    np.testing.assert_allclose(model.weight.detach().numpy().T, weight, rtol=1e-10)


class OfTwo(Processes):
    """One of two processes; the other one has so many samples in a step."""

    world = 2

    def __init__(self, others: int) -> None:
        super().__init__()
        self.others = others

    def mean(self, value: float) -> float:
        return (value + self.others) / 2


@given(sizes=st.tuples(*[st.lists(st.integers(1, 9), min_size=1, max_size=4)] * 2))
def test_processes_follow_the_mean_over_the_samples_of_all(sizes: Any) -> None:
    """Gradients are averaged over processes; here a number for each sample stands for them."""
    values = [np.random.default_rng(sum(own)).normal(size=sum(own)) for own in sizes]
    steps = 0.0
    for own, other, numbers in zip(sizes, sizes[::-1], values, strict=True):
        group = [(torch.zeros(n, 1), torch.zeros(n)) for n in own]
        shares = _shares(group, OfTwo(sum(other)))
        means = [part.mean() for part in np.split(numbers, np.cumsum(own)[:-1])]
        steps += sum(share * mean for share, mean in zip(shares, means, strict=True)) / 2
    np.testing.assert_allclose(steps, np.concatenate(values).mean(), rtol=1e-10, atol=1e-12)


AXES = {
    "one input": ({"input": 1}, (torch.zeros(5, 3, 2), torch.zeros(5, 3, 1)), 3),
    "by its place": ({0: -2}, (torch.zeros(5, 3, 2), torch.zeros(5, 3, 1)), 3),
    "inputs in a dict": ({"input": 1}, ({"input": torch.zeros(5, 3, 2)}, torch.zeros(3)), 3),
    "a dict": ({"input": 1}, {"input": torch.zeros(5, 3, 2), "y": torch.zeros(3)}, 3),
    "no batch": ({}, (torch.zeros(5, 2), torch.zeros(5, 1)), 1),
    "not said": (None, (torch.zeros(5, 3, 2), torch.zeros(5, 3, 1)), 5),
}


@pytest.mark.parametrize("name", AXES)
def test_samples_are_counted_along_the_axis_that_is_said(name: str) -> None:
    axes, batch, count = AXES[name]
    own = (lambda model, batch: (model(batch["input"]), batch["y"])) if name == "a dict" else None
    assert Task(batch_axes=axes, forward=own).samples(nn.Linear(2, 1), batch) == count


def test_a_recovery_counts_the_samples_of_inputs_with_time_first() -> None:
    mse = nn.functional.mse_loss
    split = [(torch.randn(6, n, 2), torch.randn(6, n, 1)) for n in (4, 1)]
    model = nn.Linear(2, 1, bias=False)
    weight = model.weight.detach().clone()
    optimizer = OptimizerConfig(
        algorithm="sgd", lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant"
    )
    choices = RecoveryConfig(epochs=1, optimizer=optimizer, engine=EngineConfig(accumulate=2))
    task = Task(loss=mse, metric=mse, higher_is_better=False, batch_axes={"input": 1})
    whole = CompressConfig(dendrites=DendriteConfig(max_sets=0), recovery=choices)
    recover_(model, Data(split, split), task, config=whole)
    x, y = (torch.cat([part[i] for part in split], 1) for i in (0, 1))
    gradient = 2 * ((x @ weight.T - y) * x).mean((0, 1))
    torch.testing.assert_close(model.weight.detach(), weight - 0.1 * gradient)
