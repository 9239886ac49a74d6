"""Every network of the zoo: builds, shapes, gradients, and costs derived by hand.

The formulas below count layers from their published description, not from the modules.
A multiply-add is one FLOP, batch 1, eval mode; BatchNorm then costs two per element and pooling
one, additions and activations nothing: fvcore's convention.
"""

import warnings
from math import ceil
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import model_zoo
from model_zoo import create_model, list_models, register_model, registry
from model_zoo.layers import scaled
from model_zoo.mobilenet import InvertedResidual
from model_zoo.names import natural_sorted, unknown_name_error
from model_zoo.resnet import BasicBlock

NUM_MODELS = 10


class Cost(NamedTuple):
    """Parameters and FLOPs of a part; parts add up with ``total``."""

    params: int
    flops: int


class Case(NamedTuple):
    """What a model takes, gives and costs with its default arguments."""

    input_shape: tuple[int, ...]
    num_classes: int
    cost: Cost


CASES = {
    "cnn1d": Case((6, 100), 7, Cost(53_511, 1_652_096)),
    "lenet": Case((1, 28, 28), 10, Cost(26_722, 326_464)),
    "lenet5": Case((1, 28, 28), 10, Cost(431_080, 2_293_000)),
    "minilm": Case((16,), 8, Cost(3_657_224, 57_172_992)),
    "mlp": Case((1, 28, 28), 10, Cost(235_146, 234_752)),
    "mobilenet_small": Case((3, 32, 32), 10, Cost(274_378, 10_379_776)),
    "resnet20": Case((3, 32, 32), 10, Cost(272_474, 41_218_688)),
    "resnet56": Case((3, 32, 32), 10, Cost(855_770, 126_841_472)),
    "small_cnn": Case((1, 28, 28), 10, Cost(94_186, 7_546_496)),
    "text_transformer": Case((48,), 8, Cost(27_144, 1_120_000)),
}
TOKENS = {"minilm": 256, "text_transformer": 256}  # networks that read whole numbers below this


def total(*parts: Cost) -> Cost:
    return Cost(sum(part.params for part in parts), sum(part.flops for part in parts))


def linear_cost(width_in: int, width_out: int) -> Cost:
    return Cost(width_in * width_out + width_out, width_in * width_out)


def conv_bn_cost(inputs: int, outputs: int, kernel: int, positions: int, groups: int = 1) -> Cost:
    """Cost of a convolution and its BatchNorm; ``kernel`` and ``positions`` are areas."""
    weights = inputs // groups * outputs * kernel
    return Cost(weights + 2 * outputs, weights * positions + 2 * outputs * positions)


def pool_cost(channels: int, positions: int) -> Cost:
    return Cost(0, channels * positions)


def hand_mlp() -> Cost:
    return total(linear_cost(784, 256), linear_cost(256, 128), linear_cost(128, 10))


def hand_small_cnn() -> Cost:
    return total(
        conv_bn_cost(1, 32, 9, 28 * 28),
        conv_bn_cost(32, 64, 9, 14 * 14),
        conv_bn_cost(64, 128, 9, 7 * 7),
        pool_cost(128, 7 * 7),
        linear_cost(128, 10),
    )


def hand_lenet() -> Cost:
    return total(
        conv_bn_cost(1, 8, 9, 28 * 28),
        conv_bn_cost(8, 16, 9, 14 * 14),
        linear_cost(16 * 7 * 7, 32),
        linear_cost(32, 10),
    )


def hand_lenet5() -> Cost:
    return total(
        Cost(25 * 20 + 20, 25 * 20 * 24 * 24),
        Cost(25 * 20 * 50 + 50, 25 * 20 * 50 * 8 * 8),
        linear_cost(50 * 4 * 4, 500),
        linear_cost(500, 10),
    )


def hand_cnn1d() -> Cost:
    # The pool is missing: fvcore has no rule for the 1-d one.
    return total(
        conv_bn_cost(6, 32, 5, 100),
        conv_bn_cost(32, 64, 5, 50),
        conv_bn_cost(64, 128, 5, 25),
        linear_cost(128, 7),
    )


def hand_resnet(blocks: int) -> Cost:
    cost = conv_bn_cost(3, 16, 9, 32 * 32)
    for before, channels, size in ((16, 16, 32), (16, 32, 16), (32, 64, 8)):
        first = conv_bn_cost(before, channels, 9, size**2)
        same = conv_bn_cost(channels, channels, 9, size**2)
        cost = total(cost, first, *[same] * (2 * blocks - 1))
        if before != channels:
            cost = total(cost, conv_bn_cost(before, channels, 1, size**2))
    return total(cost, pool_cost(64, 8 * 8), linear_cost(64, 10))


def hand_mobilenet_small() -> Cost:
    # One row per block: channels before, channels inside, channels after, size before, stride
    rows = [
        (16, 16, 16, 32, 1),
        (16, 64, 24, 32, 2),
        (24, 96, 24, 16, 1),
        (24, 96, 32, 16, 2),
        (32, 128, 32, 8, 1),
        (32, 128, 32, 8, 1),
        (32, 128, 64, 8, 2),
        (64, 256, 64, 4, 1),
        (64, 256, 64, 4, 1),
        (64, 256, 96, 4, 1),
        (96, 384, 96, 4, 1),
    ]
    cost = conv_bn_cost(3, 16, 9, 32 * 32)
    for before, inner, after, size, stride in rows:
        if inner != before:
            cost = total(cost, conv_bn_cost(before, inner, 1, size**2))
        positions = ceil(size / stride) ** 2
        depthwise = conv_bn_cost(inner, inner, 9, positions, groups=inner)
        cost = total(cost, depthwise, conv_bn_cost(inner, after, 1, positions))
    last = conv_bn_cost(96, 256, 1, 4 * 4)
    return total(cost, last, pool_cost(256, 4 * 4), linear_cost(256, 10))


def norm_cost(width: int, positions: int) -> Cost:
    """Cost of a LayerNorm: five operations for each element, by fvcore's convention."""
    return Cost(2 * width, 5 * width * positions)


def encoder_cost(length: int, width: int, hidden: int) -> Cost:
    """Cost of a block: attention, two norms, and a wide layer."""
    linears = [(width, width)] * 4 + [(width, hidden), (hidden, width)]
    each = [linear_cost(inputs, outputs) for inputs, outputs in linears]
    at_all = [Cost(cost.params, cost.flops * length) for cost in each]
    products = Cost(0, 2 * length * length * width)  # scores, and the mean of values
    return total(*at_all, products, *[norm_cost(width, length)] * 2)


def hand_text_transformer() -> Cost:
    embedding = Cost((256 + 48) * 32, 0)
    block = encoder_cost(48, 32, 64)
    return total(embedding, block, block, norm_cost(32, 48), linear_cost(32, 8))


def hand_minilm() -> Cost:
    embedding = Cost((256 + 16) * 384, 0)
    block = encoder_cost(16, 384, 1536)
    return total(embedding, block, block, norm_cost(384, 16), linear_cost(384, 8))


HAND_COSTS = {
    "cnn1d": hand_cnn1d,
    "lenet": hand_lenet,
    "lenet5": hand_lenet5,
    "minilm": hand_minilm,
    "mlp": hand_mlp,
    "mobilenet_small": hand_mobilenet_small,
    "resnet20": lambda: hand_resnet(3),
    "resnet56": lambda: hand_resnet(9),
    "small_cnn": hand_small_cnn,
    "text_transformer": hand_text_transformer,
}


def num_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: nn.Module, inputs: Tensor) -> int:
    with warnings.catch_warnings():
        # fvcore scripts a function at import, and traces models: both are deprecated in torch.
        warnings.simplefilter("ignore", DeprecationWarning)
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(model.eval(), inputs)
        return int(analysis.unsupported_ops_warnings(False).total())


def make_inputs(name: str, batch_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch_size, *CASES[name].input_shape)
    if name in TOKENS:
        return torch.randint(TOKENS[name], shape, generator=generator)
    return torch.randn(shape, generator=generator)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


all_models = pytest.mark.parametrize("name", list_models())


def test_every_model_has_a_case() -> None:
    assert len(list_models()) == NUM_MODELS
    assert list(CASES) == list(HAND_COSTS) == list_models()


@all_models
@pytest.mark.parametrize("batch_size", [2, 5])
def test_output_is_one_logit_per_class(name: str, batch_size: int) -> None:
    outputs = create_model(name)(make_inputs(name, batch_size))
    assert outputs.shape == (batch_size, CASES[name].num_classes)
    assert outputs.isfinite().all()


@all_models
def test_eval_output_does_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    model = create_model(name).eval()
    inputs = make_inputs(name, 3)
    with torch.no_grad():
        # float32: other batch sizes may take another order of summation
        torch.testing.assert_close(model(inputs)[:1], model(inputs[:1]), rtol=1e-4, atol=1e-5)


@all_models
def test_same_seed_same_model(name: str) -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(7)
        models.append(create_model(name))
    other = create_model(name)
    first, second = (model.state_dict() for model in models)
    assert list(first) == list(second) == list(other.state_dict())
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    assert any(not torch.equal(value, first[key]) for key, value in other.state_dict().items())


@all_models
def test_gradient_reaches_every_parameter(name: str) -> None:
    model = create_model(name)
    labels = torch.arange(4) % CASES[name].num_classes
    nn.functional.cross_entropy(model(make_inputs(name, 4)), labels).backward()
    unreached = [
        key
        for key, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert unreached == []


@all_models
def test_forward_leaves_its_input_alone(name: str) -> None:
    inputs = make_inputs(name, 2)
    before = inputs.clone()
    create_model(name)(inputs)
    assert torch.equal(inputs, before)
    in_place = [m for m in create_model(name).modules() if getattr(m, "inplace", False)]
    assert in_place == []


@all_models
def test_cost_is_the_known_one(name: str) -> None:
    model = create_model(name)
    assert Cost(num_params(model), count_flops(model, make_inputs(name, 1))) == CASES[name].cost


@all_models
def test_cost_follows_from_the_description(name: str) -> None:
    assert HAND_COSTS[name]() == CASES[name].cost


def test_a_pooled_small_cnn_is_the_strided_one_at_full_size() -> None:
    model = create_model("small_cnn", pool=True).eval()
    assert num_params(model) == hand_small_cnn().params
    assert model.features(torch.zeros(1, 1, 28, 28)).shape == (1, 128, 3, 3)


@pytest.mark.parametrize("name", ["resnet20", "resnet56", "mobilenet_small", "small_cnn"])
@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 32)])
def test_image_models_take_grey_and_colour(name: str, image_shape: tuple[int, ...]) -> None:
    model = create_model(name, in_channels=image_shape[0], num_classes=4).eval()
    assert model(torch.zeros(1, *image_shape)).shape == (1, 4)


@pytest.mark.parametrize("length", [1, 37, 200])
def test_cnn1d_takes_any_length(length: int) -> None:
    assert create_model("cnn1d").eval()(torch.zeros(2, 6, length)).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_small"])
def test_width_scales_all_layers(name: str) -> None:
    half, full = (num_params(create_model(name, width=width)) for width in (0.5, 1.0))
    # Weights go with the square of the width, BatchNorm and head with the width itself.
    assert 0.25 < half / full < 0.3


def test_half_width_resnet20_is_the_known_size() -> None:
    assert num_params(create_model("resnet20", width=0.5)) == 68_786


def test_basic_block_adds_its_input() -> None:
    block = BasicBlock(4, 4).eval()
    nn.init.zeros_(block.conv2.bn.weight)
    inputs = torch.rand(2, 4, 5, 5)
    assert torch.equal(block(inputs), inputs)


@pytest.mark.parametrize(
    ("outputs", "stride", "adds"), [(4, 1, True), (4, 2, False), (6, 1, False)]
)
def test_inverted_residual_adds_its_input_where_shapes_allow(
    outputs: int, stride: int, adds: bool
) -> None:
    block = InvertedResidual(4, outputs, stride=stride).eval()
    nn.init.zeros_(block.body.project.bn.weight)
    inputs = torch.rand(2, 4, 5, 5)
    result = block(inputs)
    assert torch.equal(result, inputs) if adds else not result.any()


@pytest.mark.parametrize("width", [0, -1.0, float("nan")])
def test_width_must_be_positive(width: float) -> None:
    with pytest.raises(ValueError, match="width must be positive, got"):
        scaled(16, width)


def test_mlp_flattens_and_may_normalise() -> None:
    model = create_model("mlp", in_features=12, hidden=(8, 4), num_classes=3, batch_norm=True)
    norms = [layer.num_features for layer in model.modules() if isinstance(layer, nn.BatchNorm1d)]
    assert norms == [8, 4]
    assert model(torch.randn(5, 3, 2, 2)).shape == (5, 3)


def test_mlp_without_hidden_layers_is_linear() -> None:
    assert num_params(create_model("mlp", in_features=6, hidden=(), num_classes=2)) == 14


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("small_cnn", {"widths": ()}, "at least one block"),
        ("small_cnn", {"pool": True, "first_stride": 2}, "first_stride is 2"),
        ("lenet", {"widths": ()}, "at least one block"),
        ("lenet", {"image_shape": (1, 28, 3)}, "too small for 2 blocks"),
        ("cnn1d", {"widths": ()}, "at least one block"),
        ("cnn1d", {"kernel_size": 4}, "odd and positive, got 4"),
        ("text_transformer", {"blocks": 0}, "got 0 blocks, width 32 and 4 heads"),
        ("text_transformer", {"heads": 5}, "width 32 and 5 heads"),
    ],
)
def test_senseless_arguments_are_refused(
    name: str, kwargs: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, **kwargs)


def test_unknown_model_names_the_closest() -> None:
    with pytest.raises(
        ValueError, match=r"unknown model 'resnet21'; did you mean 'resnet20'\?"
    ) as e:
        create_model("resnet21")
    assert all(name in str(e.value) for name in list_models())


def test_unknown_name_without_a_near_one_still_lists_all() -> None:
    assert str(unknown_name_error("model", "zzz", ["b2", "b10"])) == (
        "unknown model 'zzz'; Available: b2, b10"
    )


def test_list_models_filters_by_pattern() -> None:
    assert list_models("resnet*") == ["resnet20", "resnet56"]
    assert list_models("nothing*") == []


def test_names_sort_naturally() -> None:
    names = ["net10b", "net2", "net", "10", "9", "net10a"]
    assert natural_sorted(names) == ["9", "10", "net", "net2", "net10a", "net10b"]


def test_register_model_uses_the_name_of_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))

    @register_model
    def toy_net(width: int = 2) -> nn.Module:
        return nn.Linear(width, 1)

    assert "toy_net" in list_models()
    assert create_model("toy_net", width=5).in_features == 5
    assert toy_net().in_features == 2
    with pytest.raises(ValueError, match="cannot register model 'toy_net'"):
        register_model(toy_net)


def test_package_exports_what_it_says() -> None:
    assert set(list_models()) < set(model_zoo.__all__)
    assert all(hasattr(model_zoo, name) for name in model_zoo.__all__)
