"""Networks of every kind, shrunk, with dendrites of every form and rule, export and agree."""

from itertools import cycle

import numpy as np
import pytest
import torch
from torch import nn

import model_zoo
from pbcompress import attach_dendrites_, export_onnx, fuse, plan_widths, shrink
from pbcompress.core.inputs import as_call
from pbcompress.errors import CompressionError
from pbcompress.export.free_axes import Inputs
from pbcompress.onnx_files.session import Session
from tests.support.configs import FORMS, RULES, dendrites_of
from tests.support.exported import INPUTS, TEXTS
from tests.support.hard_nets import NETS
from tests.support.nets import CASES

ZOO = {name: (2, *shape[1:]) for name, shape in INPUTS.items()}
NETWORKS = {
    **{name: (case.build, case.inputs) for name, case in CASES.items()},
    **{f"hard: {name}": (net.build, net.inputs) for name, net in NETS.items()},
}
# torch.export refuses these, shrunk or not: the values of a mask are looked at, and the weight of a
# layer that is never called is read by another name.
REFUSED = {
    "hard: nn.Transformer": r"transformer\.py, line|hard_nets\.py, line",
    "hard: tied autoencoder": "references nonexistent attribute",
}
ROUNDS = list(zip(NETWORKS, cycle(FORMS), cycle(["relu", "tanh", "gelu", "silu"]), strict=False))
FAST = ("two inputs",)


def grown(model: nn.Module, form: str, rule: str, activation: str = "relu") -> nn.Module:
    """A copy with two sets that matter, where there is a layer for them."""
    config = dendrites_of(form=form, rule=rule, activation=activation, groups=2, rank=2, nodes=3)
    try:
        for _ in range(2):
            attach_dendrites_(model, config)
    except CompressionError:
        return model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if ".gains." in name or ".links." in name:
                nn.init.normal_(parameter, std=0.2)
    return model.eval()


def shrunk(model: nn.Module, inputs: object) -> nn.Module:
    for share in (0.6, 0.8, 0.95):
        try:
            return shrink(model, plan_widths(model, inputs, share))
        except CompressionError:
            continue
    return model


def both_agree(model: nn.Module, inputs: object, folder) -> None:
    """Export unfused and fused, each proven, and compare the files with each other."""
    outputs = []
    for name, network in (("plain", model), ("fused", fuse(model))):
        try:
            export_onnx(network, folder / f"{name}.onnx", inputs)
        except CompressionError as err:
            if "dynamic=None" not in str(err):
                raise
            export_onnx(network, folder / f"{name}.onnx", inputs, dynamic=None)
        session = Session(folder / f"{name}.onnx")
        outputs.append(session.run(session.feeds(Inputs(network, as_call(inputs)).tensors)))
    for a, b in zip(*outputs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * max(1, np.abs(a).max(initial=0)))


def test_the_lists_are_whole():
    assert sorted(ZOO) == model_zoo.list_models()
    assert (len(NETWORKS), len(FORMS), len(RULES)) == (21 + len(NETS), 5, 3)
    assert {form for _, form, _ in ROUNDS} == set(FORMS)


@pytest.mark.parametrize(
    ("name", "form", "activation"),
    [r if r[0] in FAST else pytest.param(*r, marks=pytest.mark.slow) for r in ROUNDS],
)
def test_shrunk_networks_with_dendrites_export(name, form, activation, tmp_path):
    make, inputs = NETWORKS[name]
    example = inputs(3)
    model = shrunk(make(), example).eval()
    if name in REFUSED:
        with pytest.raises(CompressionError, match=REFUSED[name]):
            export_onnx(model, tmp_path / "a.onnx", example)
        return
    model = grown(model, form, "gradient", activation)
    both_agree(model, example, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ZOO)
def test_zoo_networks_with_every_form_export(name, form, tmp_path):
    shape = ZOO[name]
    example = torch.randint(100, shape) if name in TEXTS else torch.randn(shape)
    both_agree(grown(model_zoo.create_model(name), form, "hybrid"), example, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_exports(rule, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 4))
    both_agree(grown(model, "full", rule), torch.randn(2, 3, 6, 6), tmp_path)
