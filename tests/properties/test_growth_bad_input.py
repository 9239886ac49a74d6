"""What a growth meets that it should not, and what it leaves behind."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pbcompress import (
    CompressConfig,
    CompressionError,
    Data,
    DendriteConfig,
    RecoveryConfig,
    Task,
    cycles,
    recover_,
)
from pbcompress.dendrites.growth import attach_dendrites_, detach_dendrites_
from pbcompress.dendrites.layer import dendrite_layers
from pbcompress.recovery.policy import PhaseKind
from tests.support.configs import dendrites_of


class Net(nn.Module):
    """Has a branch that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.aside = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.aside(x)
        y: Tensor = self.head(torch.tanh(self.body(x)))
        return y


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    xs = torch.randn(count, 16, 6, generator=torch.Generator().manual_seed(1))
    return [(x, x[:, :3].argmax(1)) for x in xs]


def data() -> Data:
    return Data(train=batches(), val=batches())


def config(**choices: Any) -> CompressConfig:
    recovery = RecoveryConfig(epochs=2, dendrite_epochs=2, max_failures=1, improvement=(0.0,))
    return CompressConfig(dendrites=dendrites_of(**choices), recovery=recovery)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def in_dendrite_phase() -> tuple[nn.Module, Any]:
    """A model in mid-phase, with one batch of scores."""
    model = Net()
    growth = cycles(model, config=config(candidates=2))
    for phase in growth:
        if phase.kind is PhaseKind.DENDRITE:
            break
        phase.report(1.0)
    phase.train()
    x, y = batches()[0]
    nn.functional.cross_entropy(model(x), y).backward()
    return model, growth


@pytest.mark.parametrize("rule", ["correlation", "hybrid", "gradient"])
def test_a_layer_that_the_loss_does_not_see_is_no_error_and_has_no_score(rule: str) -> None:
    model = Net()
    history = recover_(model, data(), config=config(rule=rule))
    learned = [record for record in history if record["kind"] == "dendrite"]
    assert bool(learned) == (rule != "gradient")
    for record in learned:
        assert set(record["scores"]) == {"body", "head"}
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_batch_of_another_shape_in_the_middle_leaves_the_best_weights() -> None:
    class Spoilt:
        def __init__(self) -> None:
            self.passes = 0

        def __iter__(self) -> Any:
            self.passes += 1
            yield from batches()
            if self.passes > 4:  # two for the check, two epochs
                yield torch.randn(16, 7), torch.zeros(16, dtype=torch.long)

    model = Net()
    with pytest.raises(RuntimeError, match="shape"):
        recover_(model, Data(train=Spoilt(), val=batches()), config=config())
    assert not dendrite_layers(model)  # the first set was still a candidate
    assert all(p.requires_grad for p in model.parameters())
    assert len(recover_(model, data(), config=config())) >= 6


WRONG: dict[str, tuple[Callable[[list[nn.Parameter]], Any], str]] = {
    "others": (lambda ps: torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1), "lacks 6 of them"),
    "too few": (lambda ps: torch.optim.SGD(ps[:-1], 0.1), "lacks 1 of them and holds 0 others"),
    "too many": (
        lambda ps: torch.optim.SGD([*ps, nn.Parameter(torch.ones(1))], 0.1),
        "lacks 0 of them and holds 1 others",
    ),
    "none": (lambda ps: None, "it returned NoneType"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_optimizer_over_other_parameters_is_refused(kind: str) -> None:
    model, (factory, message) = Net(), WRONG[kind]
    before = snapshot(model)
    with pytest.raises(CompressionError, match=message):
        recover_(model, data(), config=config(), optimizer=factory)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_an_optimizer_of_ones_own_makes_every_phase() -> None:
    made: list[torch.optim.Optimizer] = []

    def factory(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made.append(torch.optim.RMSprop(parameters, lr=0.01))
        return made[-1]

    history = recover_(Net(), data(), config=config(), optimizer=factory)
    assert len(made) == len({record["phase"] for record in history}) >= 3
    assert all(record["lr"] <= 0.01 for record in history)


def test_hooks_of_the_user_stay_on_the_layer_and_see_its_own_output() -> None:
    model, seen = Net(), []
    layer = model.body
    layer.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    recover_(model, data(), config=config(rule="gradient"))
    attach_dendrites_(model, config(rule="gradient").dendrites)
    seen.clear()
    x, y = batches()[0]
    nn.functional.cross_entropy(model(x), y).backward()
    assert len(seen) == 1
    assert torch.equal(seen[0], nn.functional.linear(x, layer.weight, layer.bias))
    detach_dendrites_(model, 9)
    assert model.body is layer
    assert len(layer._forward_hooks) == 1


def test_a_dendrite_reads_what_hooks_make_of_its_neurons_input() -> None:
    layer, x = nn.Linear(4, 3), torch.randn(6, 4)
    model = nn.Sequential(layer)
    layer.register_forward_pre_hook(lambda module, given: (given[0].abs(),))
    attach_dendrites_(model, config().dendrites)
    grown = model[0]
    nn.init.normal_(grown.gains[0])
    read = x.abs()
    expected = nn.functional.linear(read, layer.weight, layer.bias)
    expected = expected + grown.gains[0] * torch.relu(grown.dendrites[0](read))
    torch.testing.assert_close(model(x), expected)
    assert len(layer._forward_pre_hooks) == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo's own, at a break
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_layer_with_a_hook_on_its_input_trains_compiled_too() -> None:
    outcomes = []
    for is_compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
        model[0].register_forward_pre_hook(lambda module, given: (given[0].abs(),))
        attach_dendrites_(model, config().dendrites)
        model[0].begin_candidacy()
        run = torch.compile(model, backend="aot_eager") if is_compiled else model
        run(torch.randn(8, 4)).square().sum().backward()
        outcomes.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(outcomes[0]) == len(outcomes[1]) >= 4  # of the neurons and of a candidate
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other)


def test_wrapping_twice_adds_a_set_and_another_form_is_refused() -> None:
    model = Net()
    attach_dendrites_(model)
    attach_dendrites_(model)
    assert {layer.num_sets for layer in dendrite_layers(model).values()} == {2}
    assert not any(isinstance(m.base_layer, type(m)) for m in dendrite_layers(model).values())
    with pytest.raises(CompressionError, match="another DendriteConfig"):
        attach_dendrites_(model, DendriteConfig(form="shared"))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_model_in_mid_phase_trains_on(duplicate: Callable[[Any], Any]) -> None:
    model, _ = in_dendrite_phase()
    twin = duplicate(model)
    x, y = batches()[1]
    for one in (model, twin):
        for layer in dendrite_layers(one).values():
            layer.pool.leaf.grad = None  # a pickle has no gradients
        one.zero_grad()
        nn.functional.cross_entropy(one(x), y).backward()
    pairs = list(zip(model.parameters(), twin.parameters(), strict=True))
    assert all((a.grad is None) == (b.grad is None) for a, b in pairs)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs if a.grad is not None)
    for name, layer in dendrite_layers(model).items():
        other = dendrite_layers(twin)[name]
        assert other.pool.leaf is not layer.pool.leaf
        scores, theirs = layer.pool.summed_scores(), other.pool.summed_scores()
        assert (scores is None) == (theirs is None) == (name == "aside")
        assert scores is None or torch.equal(scores, theirs)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_goes_on_as_its_original_in_every_phase(duplicate: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    choices = config(candidates=2, node_share=0.5, max_sets=2)
    growth, seen = cycles(model, config=choices), []
    x, y = batches()[0]
    for number, phase in enumerate(growth):
        phase.train()
        twin = duplicate(model)
        results = []
        for one in (model, twin):
            trained = [p for p in one.parameters() if p.requires_grad]
            optimizer = torch.optim.SGD(trained, 0.1)
            optimizer.zero_grad()
            for layer in dendrite_layers(one).values():
                if layer.pool is not None:
                    layer.pool.leaf.grad = None  # a pickle has no gradients
            loss = nn.functional.cross_entropy(one(x), y)
            loss.backward()
            optimizer.step()
            results.append((loss, snapshot(one), [m.training for m in one.modules()]))
        assert torch.equal(results[0][0], results[1][0])
        assert all(torch.equal(v, results[1][1][k]) for k, v in results[0][1].items())
        assert results[0][2] == results[1][2]
        seen.append(str(phase.kind))
        phase.report(float(number))
    assert sorted(set(seen)) == ["dendrite", "neuron", "thaw"]
    last = duplicate(model)
    assert torch.equal(last.eval()(x), model.eval()(x))
    detach_dendrites_(last, 9)
    assert not dendrite_layers(last)
    assert dendrite_layers(model)


def test_a_metric_that_is_no_number_leaves_a_loop_of_ones_own_with_its_best_weights() -> None:
    model, growth = in_dendrite_phase()
    with pytest.raises(CompressionError, match="nan"):
        growth.phase.report(float("nan"))
    assert not dendrite_layers(model)
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_whose_parameters_are_all_frozen_is_refused() -> None:
    model = Net().requires_grad_(False)
    with pytest.raises(CompressionError, match="requires grad"):
        recover_(model, data(), Task(), config=config())
    with pytest.raises(CompressionError, match="nothing can train"):
        cycles(model, config=config())
