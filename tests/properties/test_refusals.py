"""Unusual models and inputs: each works or is refused by name, and none is changed."""

import dataclasses
import random
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from pbcompress import (
    Budget,
    CompressionError,
    UnsupportedLayerError,
    WidthConfig,
    plan_widths,
    shrink,
)
from pbcompress.core.inputs import tensors_of

quiet = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def mlp(**changed):
    """Five layers, a to e, of which a..d can be narrowed; some of them replaced."""
    layers = OrderedDict(a=nn.Linear(8, 64), r=nn.ReLU(), b=nn.Linear(64, 32), s=nn.ReLU())
    layers.update(c=nn.Linear(32, 48), t=nn.ReLU(), d=nn.Linear(48, 24), e=nn.Linear(24, 2))
    for name, change in changed.items():
        layers[name] = change(layers[name])
    return nn.Sequential(layers)


def batch(n=2):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(n))


def ignored(make, *args, **kwargs):
    """Call something of torch that warns of its age."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args, **kwargs)


def compiled_child(layer):
    layer.compile(backend="eager")
    return layer


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden: list


@dataclasses.dataclass(frozen=True)
class Batch:
    x: torch.Tensor


class Plain:
    def __init__(self, logits):
        self.logits, self.note, self.nothing = logits, "text", None


class Net(nn.Module):
    """a, b, c with a forward of one's own."""

    def __init__(self, forward, **more):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 64), nn.Linear(64, 32), nn.Linear(32, 2)
        self.run = forward
        for name, value in more.items():
            setattr(self, name, value)

    def body(self, x):
        return torch.relu(self.b(torch.relu(self.a(x))))

    def forward(self, *args, **kwargs):
        return self.run(self, *args, **kwargs)


class Counting(Net):
    """Changes buffers while it runs, in place and by a new tensor."""

    def __init__(self):
        super().__init__(None)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(32))
        self.register_buffer("last", torch.zeros(32))

    def forward(self, x):
        y = self.body(x)
        self.count += 1
        self.mean.mul_(0.9).add_(y.detach().mean(0))
        self.last = y.detach()[0].clone()
        return self.c(y)


class Twice(Net):
    def __init__(self):
        super().__init__(None)
        self.again = nn.Linear(32, 32)

    def forward(self, x):
        return self.c(torch.relu(self.again(torch.relu(self.again(self.body(x))))))


class Tied(nn.Module):
    """An embedding whose weight is the last layer's."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(20, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(torch.relu(self.mix(self.embed(tokens))))


class EncoderDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.GRU(8, 32, batch_first=True), nn.Linear(8, 32)
        self.mix, self.head = nn.Linear(32, 48), nn.Linear(48, 4)

    def forward(self, source, target, scale=1.0):
        _, state = self.encoder(source)
        both = self.decoder(target) + state[-1][:, None]
        return {"out": self.head(torch.relu(self.mix(both))) * scale, "more": (both.sum(-1),)}


def branching(self, x):
    y = torch.relu(self.a(x))
    if y.sum() > -1:  # always so
        y = torch.relu(self.b(y))
    return self.c(y)


def frozen():
    model = mlp()
    model.a.requires_grad_(False)
    model.b.bias.requires_grad_(False)
    return model


def fake_quantised():
    model = mlp().train()
    model.b.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
    model.b = torch.ao.nn.qat.Linear.from_float(model.b)
    return model


def dynamic(layer):
    holder = nn.Sequential(layer)
    return ignored(torch.ao.quantization.quantize_dynamic, holder, {nn.Linear})[0]


def graded():
    return batch().requires_grad_()


two_gru = (torch.randn(2, 5, 8), torch.randn(2, 3, 8))
bare = {"p": nn.Parameter(torch.randn(32)), "q": nn.ParameterList([torch.randn(32, 32)])}

# what is made, its inputs, the layers that keep their width beside the last, with a word of why
WORKS = {
    "partly frozen": (frozen, batch, {}),
    "bfloat16": (lambda: mlp().bfloat16(), lambda: batch().bfloat16(), {}),
    "float16": (lambda: mlp().half(), lambda: batch().half(), {}),
    "in training mode": (lambda: mlp(s=lambda _: nn.Dropout(0.5)).train(), batch, {}),
    "called twice": (Twice, batch, {}),
    "a branch on data": (lambda: Net(branching), batch, {}),
    "bare parameters": (
        lambda: Net(lambda s, x: s.c(torch.relu(s.body(x) * s.p) @ s.q[0]), **bare),
        batch,
        {},
    ),
    "changes buffers": (Counting, batch, {}),
    "tied weights": (Tied, lambda: torch.arange(6).view(2, 3), {}),
    "encoder and decoder": (EncoderDecoder, lambda: two_gru, {}),
    "named inputs": (
        EncoderDecoder,
        lambda: {"target": two_gru[1], "source": two_gru[0], "scale": 2.0},
        {},
    ),
    "nested dict input": (
        lambda: Net(lambda s, batch: s.c(s.body(batch["x"][0]))),
        lambda: {"batch": {"x": [batch()]}},
        {},
    ),
    "dataclass input": (lambda: Net(lambda s, b: s.c(s.body(b.x))), lambda: (Batch(batch()),), {}),
    "dataclass output": (
        lambda: Net(lambda s, x: Output(s.c(s.body(x)), [s.body(x)])),
        batch,
        {"b": "network's output"},
    ),
    "object output": (lambda: Net(lambda s, x: Plain(s.c(s.body(x)))), batch, {}),
    "requires_grad input": (mlp, graded, {}),
    "input of a graph": (mlp, lambda: graded() * 2, {}),
    "compiled in place": (lambda: mlp(b=compiled_child), batch, {}),
    "old weight_norm": (
        lambda: mlp(b=lambda layer: ignored(weight_norm, layer)),
        batch,
        {},
    ),
    "old spectral_norm": (lambda: mlp(b=spectral_norm), batch, {"b": "operation mv in 'b'"}),
    "weight_norm": (
        lambda: mlp(b=parametrizations.weight_norm),
        batch,
        {},
    ),
    "weight_norm of all": (
        lambda: mlp(b=lambda layer: parametrizations.weight_norm(layer, dim=None)),
        batch,
        {},
    ),
    "spectral_norm": (
        lambda: mlp(b=parametrizations.spectral_norm),
        batch,
        {"b": "operation mv in 'b.param"},
    ),
    "orthogonal": (lambda: mlp(b=parametrizations.orthogonal), batch, {"b": "in 'b.param"}),
    "one quantised layer": (lambda: mlp(c=dynamic), batch, {"b": "quantized::linear_dynamic"}),
    "fake quantisation": (fake_quantised, batch, {"b": "_fused_moving_avg_obs"}),
}
REFUSED = {
    "DataParallel": (lambda: nn.DataParallel(mlp()), batch, "the model.*model.module"),
    "compiled": (lambda: torch.compile(mlp()), batch, "OptimizedModule.*model._orig_mod"),
    "a compiled layer": (
        lambda: mlp(b=lambda layer: torch.compile(layer)),
        batch,
        "'b'.*model.b._orig_mod",
    ),
    "scripted": (lambda: ignored(torch.jit.script, mlp()), batch, "the model: it is a Script"),
    "traced": (lambda: ignored(torch.jit.trace, mlp(), batch()), batch, "the model: it is a Sc"),
    "a scripted layer": (
        lambda: mlp(b=lambda layer: ignored(torch.jit.script, layer)),
        batch,
        "layer 'b': it is a ScriptModule",
    ),
    "lazy": (lambda: mlp(d=lambda _: nn.LazyLinear(24)), batch, "'d': it is lazy.*forward"),
    "lazy norm": (lambda: mlp(s=lambda _: nn.LazyBatchNorm1d()), batch, "'s': it is lazy"),
    "one meta layer": (lambda: mlp(d=lambda d: d.to("meta")), batch, "layer 'd'.*meta"),
    "all but one meta": (
        lambda: mlp(**dict.fromkeys("abce", lambda layer: layer.to("meta"))),
        batch,
        "layer 'a': it is on the meta device",
    ),
    "all quantised": (
        lambda: ignored(torch.ao.quantization.quantize_dynamic, mlp(), {nn.Linear}),
        batch,
        "layer 'a': it is quantised.*float model",
    ),
}
FAILS = {  # what is wrong lies in the forward pass, and has no layer
    "no tensor comes out": (lambda: Net(lambda s, x: "text"), batch, "returned a str"),
    "only buffers": (lambda: nn.BatchNorm1d(8, affine=False), batch, "has 0"),
    "inputs that do not fit": (mlp, lambda: torch.zeros(2, 9), "forward failed"),
    "inputs of another kind": (mlp, lambda: 3, "example_inputs must be"),
    "meta, and a number of its weights is read": (
        lambda: Net(lambda s, x: s.b(s.a(x)) * s.b.weight.sum().item()).to("meta"),
        batch,
        "reads a value that depends on weights.*Load the weights first",
    ),
}


class State:
    """Everything about a model and the process that must stay."""

    def __init__(self, model):
        self.model = model
        self.tensors = [(k, v, v.detach().clone()) for k, v in self._tensors() if not v.is_meta]
        self.facts = self._facts()
        self.random = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    def _tensors(self):
        is_known = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return [(k, v) for k, v in is_known.items() if not nn.parameter.is_lazy(v)]

    def _facts(self):
        return [
            (
                name,
                module,
                type(module),
                module.training,
                sorted(vars(module)),
                [
                    (k, id(p), p.requires_grad, id(p.grad))
                    for k, p in module._parameters.items()
                    if p is not None
                ],
                [len(getattr(module, hooks)) for hooks in HOOKS],
                {k: v for k, v in vars(module).items() if isinstance(v, int | str | float)},
            )
            for name, module in self.model.named_modules()
        ]

    def assert_same(self):
        assert self._facts() == self.facts
        now = [(k, v) for k, v in self._tensors() if not v.is_meta]
        for (name, tensor), (was, same, value) in zip(now, self.tensors, strict=True):
            assert name == was
            assert tensor is same
            assert torch.equal(tensor, value), name
        assert torch.equal(self.random[0], torch.get_rng_state())
        assert self.random[1] == random.getstate()
        assert (self.random[2] == np.random.get_state()[1]).all()


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")


def call(model, inputs):
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def test_every_case_is_in_a_list():
    assert (len(WORKS), len(REFUSED), len(FAILS)) == (26, 11, 5)


@quiet
@pytest.mark.parametrize("name", WORKS)
def test_an_unusual_model_is_planned_and_stays_as_it_is(name):
    make, inputs, alone = WORKS[name]
    model, example = make(), inputs()
    before = State(model)
    plan = plan_widths(model, example, 0.8)
    before.assert_same()
    assert plan.steps
    for layer, reason in alone.items():
        assert reason in plan.left_alone[layer]
    small = shrink(model, plan)
    before.assert_same()
    size = sum(p.numel() for p in small.parameters())
    assert size == plan.cost_after.params
    assert size <= plan.target_params
    with torch.no_grad():
        wanted, found = tensors_of(call(model, example)), tensors_of(call(small, example))
    assert [t.shape for t in found] == [t.shape for t in wanted]
    assert found


def test_a_model_without_weights_is_planned_and_stays_as_it_is():
    model, whole = mlp().to("meta"), plan_widths(mlp(), batch(), 0.8)
    before = State(model)
    plan = plan_widths(model, batch(), 0.8)
    before.assert_same()
    assert plan.steps
    assert plan.proven == "with random weights on every layer"
    assert plan.target_params == whole.target_params
    assert plan.cost_after.params <= plan.target_params


@pytest.mark.parametrize(
    ("target", "choices"),
    [
        (0.8, {"importance": "bn_scale"}),
        (0.8, {"round_to": "measured"}),
        (Budget(latency_ms=0.5), {}),
        (Budget(file_bytes=0.5), {}),
    ],
)
def test_what_needs_weights_is_refused_without_them(target, choices):
    model = mlp().to("meta")
    before = State(model)
    with pytest.raises(CompressionError, match=r"meta device.*no weights.*load the weights first"):
        plan_widths(model, batch(), target, config=WidthConfig(**choices))
    before.assert_same()


@quiet
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_planned_is_refused_with_the_layer_and_stays_as_it_is(name):
    make, inputs, match = REFUSED[name]
    model = make()
    before = State(model)
    with pytest.raises(UnsupportedLayerError, match=match) as caught:
        plan_widths(model, inputs(), 0.8)
    assert caught.value.layer in dict(model.named_modules())
    before.assert_same()


@pytest.mark.parametrize("name", FAILS)
def test_a_forward_that_cannot_be_used_is_refused_and_the_model_stays_as_it_is(name):
    make, inputs, match = FAILS[name]
    model = make()
    before = State(model)
    with pytest.raises(CompressionError, match=match):
        plan_widths(model, inputs(), 0.8)
    before.assert_same()


def test_a_distributed_wrapper_is_refused(tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("torch without distributed")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = nn.parallel.DistributedDataParallel(mlp())
        with pytest.raises(UnsupportedLayerError, match=r"DistributedDataParallel.*model.module"):
            plan_widths(model, batch(), 0.8)
        plan = plan_widths(model.module, batch(), 0.8)
        assert plan.cost_after.params <= plan.target_params
    finally:
        torch.distributed.destroy_process_group()
