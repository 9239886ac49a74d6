"""A fitted network that a training has to beat: when it is the result, and when it is not."""

import logging
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

import pbcompress as pb
from pbcompress.runs import fitted_network
from pbcompress.training.snapshots import weights_of
from tests.support.configs import recovery_of


def network() -> nn.Sequential:
    """A network half of whose channels the others can replace, but not by leaving them out."""
    torch.manual_seed(0)
    widths = (8, 64, 64, 4)
    layers = [nn.Linear(i, o) for i, o in pairwise(widths)]
    with torch.no_grad():
        for layer in layers[:-1]:
            factors = 0.5 + torch.rand(32)
            layer.weight[32:] = factors[:, None] * layer.weight[:32]
            layer.bias[32:] = factors * layer.bias[:32]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def data_of(net: nn.Module, *, noise: float = 0.0) -> pb.Data:
    """Samples whose labels are what the network says, some of them wrong."""
    x = torch.randn(768, 8, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(1)
    wrong = torch.rand(len(x), generator=torch.Generator().manual_seed(2)) < noise
    y = torch.where(wrong, (y + 1) % 4, y)
    train = list(zip(x[:512].split(64), y[:512].split(64), strict=True))
    return pb.Data(train=train, val=[(x[512:], y[512:])])


def config_of(**choices: object) -> pb.CompressConfig:
    recovery = {"epochs": 1, "lr": 1e-5, "compensation_batches": "auto"} | choices
    return pb.CompressConfig(recovery=recovery_of(**recovery), deploy=False)


def compressed(net: nn.Module, target: float, **choices: object) -> pb.CompressionResult:
    return pb.compress(net, target, data=data_of(net), config=config_of(**choices), progress=False)


def test_what_can_be_made_good_without_training_is_the_result() -> None:
    net = network()
    fitted, plain = compressed(net, 0.6), compressed(net, 0.6, compensation_batches=0)
    assert fitted.chosen.is_only_fitted
    assert fitted.score_after.val > plain.score_after.val + 0.05
    assert fitted.cost_after.params == plain.cost_after.params
    assert "ships as it was fitted" in fitted.note


def test_a_training_that_is_better_is_the_result() -> None:
    net = network()
    auto, plain = (
        compressed(net, 0.1, epochs=20, lr=1e-2, compensation_batches=batches)
        for batches in ("auto", 0)
    )
    assert auto.chosen.compensation is None
    for name, weight in weights_of(plain.model).items():
        assert torch.equal(weights_of(auto.model)[name], weight)


def test_what_training_made_worse_is_not_the_result() -> None:
    net = network()
    result = compressed(net, 0.6, lr=3.0, epochs=2)  # ruinous
    assert result.chosen.compensation is not None
    trained = max(record["metric"] for record in result.history)
    assert result.score_after.val > trained
    assert pb.evaluate(result.model, data_of(net).val, pb.Task())[0] == result.score_after.val


def test_a_network_that_cannot_be_fitted_is_trained_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no way")

    monkeypatch.setattr(fitted_network, "compensate_", fails)
    with caplog.at_level(logging.WARNING):
        result = compressed(network(), 0.6)
    assert result.chosen.compensation is None
    assert "fitted to the original: no way" in caplog.text


def test_a_resumed_call_starts_from_the_same(tmp_path: object) -> None:
    net = network()
    arguments = {"data": data_of(net), "config": config_of(), "progress": False}
    first = pb.compress(net, 0.6, run_dir=tmp_path, **arguments)
    again = pb.compress(net, 0.6, run_dir=tmp_path, **arguments)
    for name, weight in weights_of(first.model).items():
        assert torch.equal(weights_of(again.model)[name], weight)
    assert first.score_after == again.score_after


def test_batches_are_bounded_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = fitted_network.compensate_

    def noted(*args: object, **options: object) -> object:
        seen.append(options["batches"])
        return real(*args, **options)

    monkeypatch.setattr(fitted_network, "compensate_", noted)
    monkeypatch.setattr(fitted_network, "HELD_BYTES", 3 * (64 * 8 * 4 + 64 * 8))
    compressed(network(), 0.6)
    assert seen == [3]


def test_the_choice_is_part_of_the_configuration() -> None:
    config = config_of()
    assert pb.CompressConfig.from_dict(config.to_dict()) == config
    assert replace(config, deploy=True) != config
    assert pb.RecoveryConfig().compensation_batches == "auto"


@pytest.mark.parametrize("share", ["auto", 1.0])
def test_dendrites_that_made_nothing_better_are_not_the_result(share: object) -> None:
    """With a trial, too, what ships is at least as good as the network that was only fitted."""
    net = network()
    base = config_of(lr=3.0, epochs=2, dendrite_epochs=1, thaw_epochs=0)
    dendrites = pb.DendriteConfig(share=share)
    result = pb.compress(
        net, 0.7, data=data_of(net), config=replace(base, dendrites=dendrites), progress=False
    )
    assert result.chosen.is_only_fitted
    assert "ships as it was fitted" in result.note
    assert result.chosen.sets == 0


def test_a_score_that_is_not_a_number_does_not_win(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fitted_network.fitted_network

    def unknown(*args: object) -> object:
        return replace(real(*args), score=float("nan"))

    monkeypatch.setattr("pbcompress.runs.contender_training.fitted_network", unknown)
    assert not compressed(network(), 0.6).chosen.is_only_fitted
