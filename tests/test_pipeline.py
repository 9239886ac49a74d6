"""The one call, end to end: what it promises, what it leaves alone, and how it is killed."""

import copy
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pbcompress as pb
from pbcompress.core.records import from_data, to_data
from pbcompress.core.text_tables import render_markdown
from pbcompress.onnx_files.contents import metadata_of
from pbcompress.recovery.policy import planned_epochs
from pbcompress.report.headline import headline
from pbcompress.report.tables import dendrite_account
from pbcompress.runs.facts import RunFacts
from pbcompress.runs.run_folder import read_facts
from tests.support.configs import dendrites_of

FAST = pb.RecoveryConfig(epochs=3, dendrite_epochs=2, max_failures=1, compensation_batches=0)


def make_network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def quadrants(samples: int, seed: int) -> TensorDataset:
    """Images whose class is the quadrant that holds a bright spot: learnable, and quickly."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (samples,), generator=generator)
    images = torch.randn(samples, 1, 8, 8, generator=generator) * 0.3
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[0, row * 4 : row * 4 + 4, column * 4 : column * 4 + 2] += 1 + label
    return TensorDataset(images, labels)


def make_data() -> pb.Data:
    return pb.Data(
        train=DataLoader(quadrants(96, 0), batch_size=32, shuffle=True),
        val=DataLoader(quadrants(64, 1), batch_size=32),
        test=DataLoader(quadrants(64, 2), batch_size=32),
    )


def fast_config(**dendrites) -> pb.CompressConfig:
    return pb.CompressConfig(recovery=FAST, dendrites=dendrites_of(**dendrites), deploy=False)


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_equal_weights(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


@pytest.mark.parametrize("target", [0.5, 0.25, 600])
@pytest.mark.parametrize(
    "dendrites", [{}, {"share": 0.0}, {"share": 1.0}, {"share": 0.3, "form": "shared", "nodes": 2}]
)
def test_target_is_kept_and_used(target, dendrites):
    original = sum(p.numel() for p in make_network().parameters())
    bound = int(target * original) if isinstance(target, float) else target

    result = pb.compress(
        make_network(), target, data=make_data(), config=fast_config(**dendrites), progress=False
    )

    params = sum(p.numel() for p in result.model.parameters())
    assert params == result.cost_after.params <= bound
    assert params >= 0.9 * bound  # so few channels cannot always come nearer


def test_a_wide_network_uses_at_least_97_percent_of_the_target():
    network = nn.Sequential(
        nn.Linear(16, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 4)
    )
    original = sum(p.numel() for p in network.parameters())

    for share in (0.7, 0.4, 0.1):
        result = pb.compress(
            network,
            share,
            example_inputs=torch.zeros(1, 16),
            config=pb.CompressConfig(deploy=False),
        )
        assert 0.97 * share * original <= result.cost_after.params <= share * original


def test_the_callers_model_and_random_state_stay_as_they_were():
    network, data = make_network(), make_data()
    network[0].eval()
    network[3].weight.requires_grad_(False)
    network.register_forward_hook(lambda *_: None)
    before, modes = weights(network), [m.training for m in network.modules()]
    grads = [p.requires_grad for p in network.parameters()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    pb.compress(network, 0.5, data=data, config=fast_config(), progress=False)

    assert_equal_weights(before, network.state_dict())
    assert modes == [m.training for m in network.modules()]
    assert grads == [p.requires_grad for p in network.parameters()]
    assert all(p.grad is None for p in network.parameters())
    assert len(network._forward_hooks) == 1
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()


def test_a_seed_of_numpy_is_that_seed(tmp_path):
    result = pb.compress(
        make_network(),
        0.4,
        example_inputs=torch.zeros(1, 1, 8, 8),
        config=pb.CompressConfig(deploy=False),
        seed=np.int64(3),
        run_dir=tmp_path,
    )
    assert type(result.seed) is int
    assert read_facts(tmp_path).seed == 3


def test_data_are_checked_once(monkeypatch):
    def again(*_, **__):
        raise AssertionError("the data were checked again")

    monkeypatch.setattr("pbcompress.recovery.recover.check_data", again)
    result = pb.compress(
        make_network(), 0.4, data=make_data(), config=fast_config(max_sets=0), progress=False
    )
    assert len(result.history) == FAST.epochs
    with pytest.raises(AssertionError, match="checked again"):
        pb.recover_(make_network(), make_data(), config=FAST)


def test_same_seed_same_numbers_and_another_seed_others():
    results = [
        pb.compress(
            make_network(), 0.4, data=make_data(), config=fast_config(), seed=seed, progress=False
        )
        for seed in (5, 5, 6)
    ]

    assert_equal_weights(results[0].model.state_dict(), results[1].model.state_dict())
    losses = [[record["loss"] for record in result.history] for result in results]
    assert losses[0] == losses[1] != losses[2]


RACES = {
    "correlation": {"rule": "correlation"},
    "hybrid": {"rule": "hybrid"},
    "gradient": {"rule": "gradient"},
    "from the start": {"rule": "gradient", "at_start": True},
    "two sets": {"rule": "correlation", "max_sets": 2},
}


@pytest.mark.parametrize("name", RACES)
def test_a_race_takes_the_epochs_of_one_training_and_validation_decides(name):
    recovery = replace(FAST, epochs=6, dendrite_epochs=4, dendrite_patience=4, trial=0.2)
    config = replace(fast_config(share="auto", **RACES[name]), recovery=recovery)
    result = pb.compress(make_network(), 0.5, data=make_data(), config=config, progress=False)

    winner, loser = result.chosen, result.other
    assert {winner.name, loser.name} == {"dendrites", "width"}
    assert len(result.history) == planned_epochs(recovery, config.dendrites)
    assert len(result.history) == len(winner.history) + len(loser.history)
    assert winner.history.steps == result.history.stage(winner.name).steps
    assert winner.trial is not None
    assert loser.trial is None
    assert loser.score.test is None  # the test split is for what is returned
    assert result.over_control is None
    by_name = {winner.name: winner.trial, loser.name: loser.score.val}
    assert (by_name["dendrites"] > by_name["width"]) == (winner.name == "dendrites")
    assert f"{by_name['dendrites']:.4f} with dendrites" in result.note
    records = winner.history.records[: len(loser.history)]
    if winner.name == "dendrites":
        records = [r for r in records if r["sets"] and r["kind"] != "dendrite"]
    assert winner.trial == pytest.approx(max(r["metric"] for r in records))
    assert "trial only" in render_markdown(dendrite_account(result.facts()))


def test_the_control_of_a_race_trains_as_long_as_the_winner():
    config = fast_config(share="auto", rule="gradient", at_start=True)
    options = {"data": make_data(), "config": config, "progress": False}
    alone = pb.compress(make_network(), 0.5, **options)
    beside = pb.compress(make_network(), 0.5, control=True, **options)

    assert_equal_weights(alone.model.state_dict(), beside.model.state_dict())
    assert beside.other.history.steps == beside.chosen.history.steps
    assert beside.other.trial is not None
    assert beside.other.score.test is not None
    assert "trial only" not in render_markdown(dendrite_account(beside.facts()))
    assert alone.over_control is None
    check_over_control(beside)


def check_over_control(result):
    """Compare with what both networks have right, counted by numpy."""
    images, labels = quadrants(64, 2).tensors
    arms = [arm.network.eval()(images).argmax(1) == labels for arm in (result.other, result.chosen)]
    old, new = (arm.numpy() for arm in arms)
    found = result.over_control
    assert found.value == pytest.approx((new & ~old).mean() - (old & ~new).mean())
    assert found.value == pytest.approx(result.chosen.score.test - result.other.score.test)
    half = 1.96 * (new.astype(float) - old).std() / 8  # normal, of 64 pairs
    assert (found.low, found.high) == pytest.approx(
        (found.value - half, found.value + half), abs=2 / 64
    )
    assert to_data(result.facts())["over_control"]["samples"] == 64


@pytest.mark.parametrize(
    ("dendrites", "why"),
    [
        ({"max_sets": 0}, "no dendrites were asked for"),
        ({"share": 0.0}, "no dendrites were asked for"),
        ({"max_price": 1e-6}, "cost at most 1e-06 of a neuron"),
        ({"share": 1e-6}, "no room for a set of dendrites."),
    ],
)
def test_width_alone_says_why(dendrites, why):
    config = fast_config(**dendrites)
    result = pb.compress(make_network(), 0.5, data=make_data(), config=config, progress=False)
    assert why in result.note
    assert result.other is None


def test_a_bound_on_the_epochs_bounds_the_race():
    config = replace(fast_config(share="auto"), recovery=replace(FAST, max_epochs=7))
    result = pb.compress(make_network(), 0.5, data=make_data(), config=config, progress=False)
    assert len(result.history) == max(7, 2 * len(result.other.history) + 1)


def test_control_is_trained_beside_a_given_share():
    config = fast_config(share=1.0, rule="gradient")

    alone = pb.compress(make_network(), 0.6, data=make_data(), config=config, progress=False)
    beside = pb.compress(
        make_network(), 0.6, data=make_data(), config=config, control=True, progress=False
    )

    assert beside.other is not None
    assert {record["stage"] for record in beside.history} == {"dendrites", "width"}
    check_over_control(beside)
    if alone.chosen.name == "dendrites":
        assert_equal_weights(alone.model.state_dict(), beside.model.state_dict())


def test_without_data_it_shrinks_only_and_says_so(caplog):
    result = pb.compress(
        make_network(), 0.5, example_inputs=torch.zeros(1, 1, 8, 8), config=fast_config()
    )

    assert "only shrunk" in result.note
    assert "only shrunk" in caplog.text
    assert "only shrunk" in str(result)
    assert len(result.history) == 0


def test_a_budget_without_parameters_is_kept_as_it_was_asked():
    budget = pb.Budget(flops=0.5)
    result = pb.compress(
        make_network(), budget, example_inputs=torch.zeros(1, 1, 8, 8), config=fast_config()
    )
    assert result.budget == result.plan.budget == result.facts().budget == budget
    lines = str(result).splitlines()
    bounds = [line for line in lines if line.startswith("Bound")]
    assert lines[:2] == [*headline(result.facts())] == [lines[0], *bounds]
    most, flops = result.cost_before.flops // 2, result.cost_after.flops
    assert f"at most {most:,} FLOPs (0.5 of the original), reached {flops:,}" in bounds[0]
    assert flops <= most


def test_a_number_and_a_budget_of_it_are_one_call(tmp_path):
    example = torch.zeros(1, 1, 8, 8)
    options = {"example_inputs": example, "config": fast_config(), "run_dir": tmp_path}
    first = pb.compress(make_network(), 0.5, **options)
    assert pb.compress(make_network(), pb.Budget(params=0.5), **options).plan == first.plan
    with pytest.raises(pb.StateMismatchError, match="another"):
        pb.compress(make_network(), pb.Budget(params=0.5, flops=0.9), **options)


def test_without_inputs_and_data_the_error_shows_the_call():
    with pytest.raises(pb.CompressionError, match=r"example_inputs=torch\.zeros"):
        pb.compress(make_network(), 0.5)


def test_a_lower_is_better_metric_is_minimised():
    mse = nn.functional.mse_loss
    x = torch.randn(64, 6)
    batches = [(x, x[:, :2] * 2)]
    network = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 2))
    task = pb.Task(loss=mse, metric=mse, higher_is_better=False, name="mse")

    result = pb.compress(
        network,
        0.6,
        data=pb.Data(batches, batches),
        task=task,
        config=fast_config(),
        progress=False,
    )

    best = min(
        r["metric"] for r in result.history.stage(result.chosen.name) if r["kind"] == "neuron"
    )
    assert result.score_after.val == pytest.approx(best, rel=1e-5)
    assert "mse, val" in str(result)


class Killed(Exception):  # noqa: N818 - stands for a signal, not for an error
    pass


class KillAfter(pb.Callback):
    def __init__(self, epochs):
        self.left = epochs

    def on_epoch(self, record):
        self.left -= 1
        if self.left < 0:
            raise Killed


def test_a_run_killed_again_and_again_ends_like_an_uninterrupted_one(tmp_path):
    config = fast_config(share="auto")
    config = replace(config, recovery=replace(config.recovery, compensation_batches=8))
    whole = pb.compress(make_network(), 0.4, data=make_data(), config=config, progress=False)

    def attempt(callbacks=()):
        return pb.compress(
            make_network(),
            0.4,
            data=make_data(),
            config=config,
            run_dir=tmp_path,
            callbacks=callbacks,
            progress=False,
        )

    kills = 0
    for epochs in range(len(whole.history)):
        try:
            attempt([KillAfter(epochs)])
        except Killed:
            kills += 1
    result = attempt()

    assert kills >= 8
    assert_equal_weights(whole.model.state_dict(), result.model.state_dict())
    timeless = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in run.history]
        for run in (whole, result)
    ]
    assert timeless[0] == timeless[1]


def test_a_finished_run_is_not_trained_again(tmp_path):
    options = {"data": make_data(), "config": fast_config(), "run_dir": tmp_path, "progress": False}
    first = pb.compress(make_network(), 0.4, **options)

    class Count(pb.Callback):
        steps = 0

        def on_epoch(self, record):
            self.steps += 1

    count = Count()
    checkpoints = {p: p.stat().st_mtime_ns for p in (tmp_path / "checkpoints").iterdir()}
    second = pb.compress(make_network(), 0.4, callbacks=[count], **options)

    assert_equal_weights(first.model.state_dict(), second.model.state_dict())
    assert checkpoints == {p: p.stat().st_mtime_ns for p in (tmp_path / "checkpoints").iterdir()}


def kept_plan(path):
    """The plan of a network that a run was begun with."""
    return pb.WidthPlan.from_json(json.dumps(json.loads(path.read_text())["plan"]))


def test_a_run_that_goes_on_takes_the_plans_that_it_began_with(tmp_path, monkeypatch):
    """Bounds that are measured give other widths when they are planned for again."""
    options = {"data": make_data(), "config": fast_config(), "run_dir": tmp_path, "progress": False}
    first = pb.compress(make_network(), 0.4, **options)
    kept = sorted(tmp_path.glob("checkpoints/*.plan.json"))
    assert [path.name.partition("-")[0] for path in kept] == ["dendrites", "width"]
    assert first.plan in map(kept_plan, kept)

    def again(*_, **__):
        raise AssertionError("it was planned again")

    monkeypatch.setattr("pbcompress.runs.contender_training.make_plan", again)
    second = pb.compress(make_network(), 0.4, **options)
    assert second.plan == first.plan
    assert all(torch.equal(v, weights(second.model)[k]) for k, v in weights(first.model).items())
    with pytest.raises(AssertionError, match="planned again"):
        pb.compress(make_network(), 0.4, **options | {"run_dir": tmp_path / "other"})


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"target": 0.5}, {"config": fast_config(form="shared")}, {"network": "other"}],
    ids=["seed", "target", "config", "weights"],
)
def test_a_run_dir_of_another_call_is_refused(change, tmp_path):
    data = make_data()
    pb.compress(
        make_network(), 0.4, data=data, config=fast_config(), run_dir=tmp_path, progress=False
    )
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    network = make_network()
    if "network" in change:
        nn.init.zeros_(network[8].bias)

    with pytest.raises(pb.StateMismatchError, match="another"):
        pb.compress(
            network,
            change.get("target", 0.4),
            data=data,
            config=change.get("config", fast_config()),
            seed=change.get("seed", 0),
            run_dir=tmp_path,
            progress=False,
        )
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_the_whole_run_on_disk(tmp_path):
    config = pb.CompressConfig(recovery=FAST)
    result = pb.compress(
        make_network(), 0.4, data=make_data(), config=config, run_dir=tmp_path, progress=False
    )

    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "state.json", "weights.safetensors", "history.jsonl", "checkpoints", "model.onnx",
        "sample.safetensors", "identity.json",
        "report.html", "report.md", "report.json",
    }  # fmt: skip
    again = pb.load(tmp_path, make_network)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(again(x), result.model(x))
    torch.testing.assert_close(result.frozen()(x), result.model(x), rtol=1e-4, atol=1e-5)
    report = json.loads((tmp_path / "report.json").read_text())
    facts = from_data(RunFacts, report["facts"], "The report")
    assert facts.after.cost == result.cost_after
    assert facts.shipped.bytes_after == (tmp_path / "model.onnx").stat().st_size
    assert len(report["history"]) == len(result.history)
    text = str(result)
    for label in (
        "parameters",
        "FLOPs",
        "ONNX file",
        "ONNX Runtime",
        "accuracy, val",
        "accuracy, test",
    ):
        assert label in text


def test_a_network_that_cannot_be_exported_still_gives_its_result():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 64), nn.Linear(64, 2)

        def forward(self, x):
            y = self.b(self.a(x).relu())
            return y if y.sum().item() > 0 else y + 0

    result = pb.compress(Stubborn(), 0.5, example_inputs=torch.randn(1, 8))

    assert isinstance(result.deployment, str)
    assert "torch refused at" in result.deployment
    assert "in forward: return y if y.sum().item() > 0 else y + 0" in result.deployment
    assert result.cost_after.params <= 0.5 * (8 * 64 + 64 + 130)


class NanLoader(list):
    pass


BAD_CALLS = {
    "zero": ({"target": 0}, pb.TargetUnreachableError, "smallest reachable"),
    "negative": ({"target": -3}, pb.TargetUnreachableError, "smallest reachable"),
    "above the original": ({"target": 10**9}, pb.TargetUnreachableError, "the model has"),
    "unreachable": ({"target": 3}, pb.TargetUnreachableError, "smallest reachable"),
    "no module": ({"network": "a string"}, pb.CompressionError, "torch.nn.Module"),
    "frozen model": ({"frozen": True}, pb.CompressionError, "requires grad"),
    "empty loader": ({"train": []}, pb.CompressionError, "no batch"),
    "one-shot iterator": ({"train": iter([1])}, pb.CompressionError, "one pass"),
    "odd batch": ({"train": [torch.zeros(2, 1, 8, 8)]}, pb.CompressionError, "inputs, target"),
    "NaN in data": (
        {"train": [(torch.full((2, 1, 8, 8), math.nan), torch.zeros(2, dtype=torch.long))]},
        pb.CompressionError,
        "NaN",
    ),
    "loss is no scalar": (
        {"task": pb.Task(loss=lambda o, t: nn.functional.cross_entropy(o, t, reduction="none"))},
        pb.CompressionError,
        "scalar",
    ),
    "metric is no number": (
        {"task": pb.Task(metric=lambda o, t: "good")},
        pb.CompressionError,
        "number",
    ),
    "no such device": ({"device": "cuda:7"}, pb.CompressionError, "not usable"),
    "run_dir is a file": ({"run_dir": "file"}, pb.CompressionError, "could not be"),
    "unknown layer to grow": (
        {"config": fast_config(layers=("nothing*",))},
        pb.CompressionError,
        "matches no layer",
    ),
    "layer that cannot grow": (
        {"config": fast_config(layers=("1",))},
        pb.UnsupportedLayerError,
        "BatchNorm",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_one_clear_error_and_changes_nothing(name, tmp_path):
    assert len(BAD_CALLS) == 16
    change, kind, message = BAD_CALLS[name]
    data, network = make_data(), change.get("network", make_network())
    if "train" in change:
        data = pb.Data(change["train"], data.val, data.test)
    if change.get("frozen"):
        network.requires_grad_(False)
    run_dir = None
    if "run_dir" in change:
        run_dir = tmp_path / "file" / "run"
        (tmp_path / "file").write_text("in the way")
    before = copy.deepcopy(network.state_dict()) if isinstance(network, nn.Module) else None

    with pytest.raises(kind, match=message):
        pb.compress(
            network,
            change.get("target", 0.5),
            data=data,
            task=change.get("task"),
            device=change.get("device"),
            config=change.get("config", fast_config()),
            run_dir=run_dir,
            progress=False,
        )
    if before is not None:
        assert_equal_weights(before, network.state_dict())


def test_a_full_disk_is_one_clear_error_and_leaves_no_half_file(tmp_path, monkeypatch):
    from pathlib import Path

    real = Path.open

    def full(self, mode="r", *args, **kwargs):
        if "w" in mode and "safetensors" in self.name:
            raise OSError(28, "No space left on device")
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(pb.CompressionError, match="No space left"):
        pb.compress(
            make_network(),
            0.5,
            data=make_data(),
            config=fast_config(),
            run_dir=tmp_path,
            progress=False,
        )
    left = [p for p in tmp_path.rglob("*") if p.is_file()]  # the plans, whole
    left.remove(tmp_path / "identity.json")
    plans = [p for p in left if p.name.endswith(".plan.json")]
    assert [p.name.rpartition(".")[0][-3:] for p in left if p not in plans] == [".lr"]
    assert len(plans) == 2
    assert all(kept_plan(path).target_params > 0 for path in plans)


def test_an_exported_result_says_what_it_is(tmp_path):
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    result = pb.compress(network, 0.5, example_inputs=torch.randn(1, 8))
    result.export_onnx(tmp_path / "a.onnx", metadata={"author": "me"})
    found = metadata_of(tmp_path / "a.onnx")
    assert (
        found.items()
        >= {
            "params": str(result.cost_after.params),
            "flops": str(result.cost_after.flops),
            "fingerprint": result.fingerprint,
            "metric": "accuracy",
            "author": "me",
        }.items()
    )


def test_what_reads_narrowed_channels_is_fitted_before_training_unless_that_is_not_wanted():
    for batches in (2, 0):
        recovery = replace(FAST, compensation_batches=batches)
        config = replace(fast_config(max_sets=0), recovery=recovery)
        result = pb.compress(make_network(), 0.4, data=make_data(), config=config, progress=False)
        report = result.chosen.compensation
        assert (report is None) == (batches == 0)
        if report is not None:
            assert all(e.after < e.before for e in report.layers.values())
