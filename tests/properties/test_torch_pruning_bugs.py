"""The sixteen verified bugs and limits of torch-pruning 1.6.1, and what happens here instead.

torch-pruning slices plain layers for this library; whatever else it does is done otherwise. Each
test has the number of its row.
"""

import copy
import inspect
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from pbcompress import CompressConfig, LayerCut, WidthConfig, measure, plan_widths, shrink, shrink_
from tests.support.dead_channels import count, double, reference, run, smallest_or
from tests.support.nets import CASES, Net, images, vectors


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def tokens(n):
    return torch.randn(n, 7, 10, generator=torch.Generator().manual_seed(n))


def assert_right(model, plan, inputs):
    """The narrow network equals the original in which all removed channels are dead."""
    expected = reference(model, plan.steps).double().eval()
    with torch.no_grad():
        found = run(shrink(model, plan).double().eval(), double(inputs))
        torch.testing.assert_close(found, run(expected, double(inputs)), rtol=1e-9, atol=1e-9)


def narrowed(plan):
    return {s.layer for s in plan.steps if s.dim != "in"}


def test_1_the_mode_of_every_module_stays():
    model = CASES["chain"].build().train()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    plan = plan_widths(model, images(1), 0.5)
    small = shrink(model, plan)
    assert [m.training for m in model.modules()] == modes
    assert [m.training for m in small.modules()] == modes
    shrink_(model, plan)
    assert [m.training for m in model.modules()] == modes


def test_2_a_tensor_is_a_batch_also_where_a_single_sample_would_do():
    model = nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    batch = torch.randn(3, 7)
    assert model(batch[0]).shape == (2,)  # it tolerates a sample without the batch's axis
    plan = plan_widths(model, batch, 0.5)
    assert plan.cost_before.input_shapes == {"0": (1, 7)}
    assert plan.steps == plan_widths(model, (batch,), 0.5).steps
    assert_right(model, plan, torch.randn(5, 7))


def test_3_a_frozen_network_is_narrowed_and_stays_frozen():
    model = CASES["residual"].build()
    expected = plan_widths(model, images(1), 0.5)
    model.requires_grad_(False)
    plan = plan_widths(model, images(1), 0.5)
    assert plan.steps == expected.steps != ()
    assert not any(
        p.requires_grad for p in [*model.parameters(), *shrink(model, plan).parameters()]
    )


def test_4_nothing_is_shared_between_calls():
    heads, chain = CASES["grouped"].build(), CASES["chain"].build()
    before = plan_widths(chain, images(1), 0.5)
    plan_widths(heads, images(1), 0.5, config=CompressConfig(width=WidthConfig(round_to=2)))
    assert plan_widths(chain, images(1), 0.5).to_dict() == before.to_dict()
    defaults = [
        p.default
        for f in (plan_widths, shrink, shrink_)
        for p in inspect.signature(f).parameters.values()
    ]
    assert not any(isinstance(d, list | dict | set) for d in defaults)


@pytest.mark.parametrize(
    ("kind", "dim"), [("tokens", 2), ("tokens", -1), ("image", 3), ("image", -1)]
)
def test_5_a_concatenation_on_any_axis_is_followed(kind, dim):
    is_image = kind == "image"
    model = Net(
        lambda s, x: s.head(
            torch.cat([s.a(x).movedim(1, -1), s.b(x).movedim(1, -1)], dim)
            if is_image
            else torch.cat([s.a(x), s.b(x)], dim)
        ),
        a=conv(3, 8) if is_image else nn.Linear(10, 8),
        b=conv(3, 12) if is_image else nn.Linear(10, 12),
        head=nn.Linear(20, 4),
    )
    inputs = images if is_image else tokens
    plan = plan_widths(model, inputs(1), 0.5)
    assert {"a", "b"} <= narrowed(plan)
    assert_right(model, plan, inputs(2))


def test_6_a_share_is_what_is_kept():
    model = CASES["chain"].build()
    plan = plan_widths(model, images(1), 0.25)
    assert 0.2 < count(shrink(model, plan)) / count(model) <= 0.25


@pytest.mark.parametrize("allocation", ["uniform", "balanced", "global"])
def test_7_no_layer_loses_more_than_its_cap(allocation):
    model = nn.Sequential(nn.Linear(10, 512), nn.ReLU(), nn.Linear(512, 64), nn.Linear(64, 4))
    with torch.no_grad():
        model[0].weight *= 1e-3  # by importance all of it would go
    config = CompressConfig(width=WidthConfig(allocation=allocation, max_ratio=0.6))
    plan = plan_widths(model, vectors(1), 0.45, config=config)
    assert plan.cost_after.params <= 0.45 * count(model)
    assert all(len(s.removed) <= 0.6 * s.width for s in plan.steps)


def test_8_layers_are_named_and_never_keyed_by_instance():
    model = CASES["residual"].build()
    config = CompressConfig(width=WidthConfig(keep=("first", "second")))
    plan = plan_widths(model, images(1), 0.8, config=config)
    assert not {"first.0", "second"} & {s.layer for s in plan.steps if s.dim == "out"}
    assert CompressConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_9_rounding_goes_up_where_the_target_allows_it():
    model = nn.Sequential(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 5))
    config = CompressConfig(width=WidthConfig(round_to=16))
    per_unit = 10 + 1 + 5
    for allowed, width in ((97, 96), (96, 96), (95, 80), (33, 32)):
        plan = plan_widths(model, vectors(1), allowed * per_unit + 5, config=config)
        assert plan.steps[0].width_after == width
    # what torch-pruning makes of "one percent less": a whole step less than was asked for
    loose = CompressConfig(width=WidthConfig(round_to=1))
    assert (
        plan_widths(model, vectors(1), 99 * per_unit + 5, config=loose).steps[0].width_after == 99
    )


def test_10_tied_weights_stay_tied_and_are_narrowed_once():
    table, head = nn.Embedding(20, 8), nn.Linear(8, 20)
    head.weight = table.weight
    model = nn.Sequential(table, nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), head)
    inputs = torch.arange(10).reshape(2, 5)
    plan = plan_widths(model, inputs, 0.5)
    small = shrink(model, plan)
    assert small[4].weight is small[0].weight
    assert small[0].weight.shape == (20, small[0].embedding_dim) == (20, small[4].in_features)
    assert small[0].embedding_dim < 8
    assert count(small) == plan.cost_after.params
    assert_right(model, plan, inputs)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_11_recurrent_layers_are_narrowed_inside(kind, layers, bidirectional):
    ways = 2 if bidirectional else 1
    model = Net(
        lambda s, x: s.head(torch.relu(s.core(s.stem(x))[0]).mean(1)),
        stem=nn.Linear(10, 12),
        core=kind(12, 8, layers, batch_first=True, bidirectional=bidirectional),
        head=nn.Linear(8 * ways, 4),
    )
    plan = plan_widths(model, tokens(1), 0.5)
    small = shrink(model, plan)
    assert "core" in narrowed(plan)
    assert small.core.hidden_size < 8
    assert small.core.input_size == small.stem.out_features
    assert_right(model, plan, tokens(3))
    small.train()(tokens(2)).sum().backward()


MIXERS = {
    "pixel shuffle": (nn.PixelShuffle(2), 4),
    "pixel unshuffle": (nn.PixelUnshuffle(2), 64),
    "glu": (nn.GLU(1), 8),
    "channel shuffle": (nn.ChannelShuffle(4), 16),
}


@pytest.mark.parametrize("name", MIXERS)
def test_12_layers_that_move_channels_are_followed(name):
    layer, width = MIXERS[name]
    model = nn.Sequential(conv(3, 16), layer, conv(width, 12), nn.ReLU(), conv(12, 2))
    plan = plan_widths(model, images(1), 0.5)
    assert {"0", "2"} <= narrowed(plan)
    assert_right(model, plan, images(2))
    assert len(MIXERS) == 4


def test_13_a_hard_coded_view_keeps_what_it_names_and_the_network_runs():
    model = Net(
        lambda s, x: s.head(torch.relu(s.c(torch.relu(s.b(torch.relu(s.a(x)))).view(-1, 8 * 36)))),
        a=conv(3, 16),
        b=conv(16, 8),
        c=nn.Linear(288, 12),
        head=nn.Linear(12, 3),
    )
    plan = smallest_or(0.2, model, images(1))
    assert narrowed(plan) == {"a", "c"}
    assert "does not follow" in plan.left_alone["b"]
    assert_right(model, plan, images(3))


def test_14_a_plan_and_weights_load_without_pickle(tmp_path):
    model = CASES["residual"].build()
    plan = plan_widths(model, images(1), 0.5)
    small = shrink(model, plan)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_dict()))
    torch.save(small.state_dict(), tmp_path / "weights.pt")
    save_file(small.state_dict(), tmp_path / "weights.safetensors")
    steps = json.loads((tmp_path / "plan.json").read_text())["steps"]
    for state in (
        torch.load(tmp_path / "weights.pt", weights_only=True),
        load_file(tmp_path / "weights.safetensors"),
    ):
        fresh = CASES["residual"].make()
        shrink_(fresh, [LayerCut.from_list(step) for step in steps])
        fresh.load_state_dict(state)
        assert torch.equal(fresh.eval()(images(2)), small.eval()(images(2)))


def test_15_parameters_are_new_and_a_fresh_optimizer_trains_them():
    model = CASES["chain"].build()
    stale = torch.optim.SGD(model.parameters(), lr=0.1)
    small = copy.deepcopy(model)
    shrink_(small, plan_widths(model, images(1), 0.5))
    held = {id(p) for group in stale.param_groups for p in group["params"]}
    assert not held & {id(p) for p in small.parameters()}
    optimizer = torch.optim.Adam(small.parameters(), lr=0.01)
    target = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(functional.mse_loss(small(images(8)), target))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


# multiply-adds by hand, of one sample; 1 multiply-add is 1 FLOP
COUNTED = {
    "lstm": (nn.LSTM(10, 8, batch_first=True), tokens(1), 7 * 4 * 8 * (10 + 8)),
    "lstm, two layers, both ways": (
        nn.LSTM(10, 8, 2, batch_first=True, bidirectional=True),
        tokens(1),
        7 * 2 * 4 * 8 * ((10 + 8) + (16 + 8)),
    ),
    "gru": (nn.GRU(10, 8, batch_first=True), tokens(1), 7 * 3 * 8 * (10 + 8)),
    "rnn": (nn.RNN(10, 8, batch_first=True), tokens(1), 7 * 8 * (10 + 8)),
    "transposed convolution": (
        nn.ConvTranspose2d(3, 8, 2, stride=2),
        images(1),
        36 * 3 * 8 * 4,  # each input position makes 2 x 2 outputs
    ),
    "functional product": (
        Net(lambda s, x: x @ s.weight, weight=nn.Parameter(torch.randn(10, 6))),
        tokens(1),
        7 * 10 * 6,
    ),
    "product of activations": (
        Net(lambda s, x: s.a(x) @ s.a(x).mT, a=nn.Linear(10, 6)),
        tokens(1),
        2 * 7 * 10 * 6 + 7 * 7 * 6,
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_16_flops_are_those_of_a_count_by_hand(name):
    layer, inputs, expected = COUNTED[name]
    assert measure(layer, inputs).flops == expected
    assert len(COUNTED) == 7


def test_16_attention_called_as_a_function_is_counted():
    model = Net(
        lambda s, x: s.out(
            functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])
        ),
        out=nn.Linear(10, 4),
    )
    cost = measure(model, tokens(1))
    assert cost.flops == 7 * 10 * 4 + 2 * 7 * 7 * 10
    assert not any("scaled_dot_product_attention" in name for name in cost.uncounted_ops)


def test_every_row_has_its_test():
    rows = {
        re.match(r"test_(\d+)_", name)[1]
        for name in globals()
        if name.startswith("test_") and name[5].isdigit()
    }
    assert rows == {str(row) for row in range(1, 17)}
