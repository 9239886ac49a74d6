"""Widths that hardware is fast with: the table, and that default plans keep to it."""

import pytest
import torch
from torch import nn

from pbcompress import CompressConfig, DendriteConfig, WidthConfig, plan_widths
from pbcompress.core.inputs import as_call
from pbcompress.core.modules import copy_model
from pbcompress.costs.alignment import BLOCKS, Block, multiples_for
from pbcompress.structure.channel_groups import find_groups

IMAGE = torch.zeros(1, 3, 16, 16)


def groups_of(model, inputs):
    return find_groups(copy_model(model).eval(), as_call(inputs)).groups


def convolutions(width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, groups=width),
        nn.Conv2d(width, 2 * width, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def test_the_table_has_every_kind_of_layer_and_powers_of_two():
    assert len(BLOCKS) == 3
    for blocks in BLOCKS.values():
        assert set(blocks) == {"convolution", "depthwise", "product"}
        for block in blocks.values():
            assert block.least <= block.most
            assert block.least & (block.least - 1) == block.most & (block.most - 1) == 0


@pytest.mark.parametrize(
    ("block", "width", "multiple"),
    [
        (Block(8, 8), 16, 8),
        (Block(8, 8), 4096, 8),
        (Block(1, 8), 100, 1),
        (Block(1, 8), 256, 4),
        (Block(1, 8), 768, 8),
        (Block(8, 64), 64, 8),
        (Block(8, 64), 1024, 16),
        (Block(8, 64), 2048, 32),
        (Block(8, 64), 4096, 64),
    ],
)
def test_wide_layers_have_wide_steps(block, width, multiple):
    assert block.multiple(width) == multiple


def test_a_group_takes_the_widest_block_of_its_layers():
    model = convolutions(64)
    assert multiples_for(model, groups_of(model, IMAGE), "cpu") == [8, 8]
    assert multiples_for(model, groups_of(model, IMAGE), "gpu float16") == [8, 8]
    table = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 24), nn.Linear(24, 3))
    assert multiples_for(table, groups_of(table, torch.zeros(1, 8)), "cpu") == [1, 1]


@pytest.mark.parametrize("share", [0.7, 0.5, 0.3])
@pytest.mark.parametrize("hardware", BLOCKS)
def test_default_plans_are_in_multiples_and_use_the_target(share, hardware):
    model = convolutions(64)
    plan = plan_widths(model, IMAGE, share, config=WidthConfig(hardware=hardware))
    assert 0.97 * plan.target_params <= plan.cost_after.params <= plan.target_params
    multiples = multiples_for(model, groups_of(model, IMAGE), hardware)
    widths = [plan.cost_after.by_layer[name].width for name in ("0", "4")]
    assert sum(w % m > 0 for w, m in zip(widths, multiples, strict=True)) <= 1  # fills the target


def test_small_groups_are_free_where_a_block_would_miss_the_target():
    model = convolutions(8)
    config = CompressConfig(dendrites=DendriteConfig(max_sets=0))
    plan = plan_widths(model, IMAGE, 0.4, config=config)
    assert 0.9 <= plan.cost_after.params / plan.target_params <= 1
