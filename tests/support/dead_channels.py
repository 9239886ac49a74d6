"""The network in which the channels that a plan removes are dead: what a narrow one must equal."""

import copy
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves, tree_map

from pbcompress import CompressConfig, WidthConfig, plan_widths
from pbcompress.errors import TargetUnreachableError


def smallest_or(share, model, inputs):
    """A plan for a share of the parameters, or for the smallest network where that is larger.

    All groups are narrowed alike, so that every one of them is.
    """
    config = CompressConfig(width=WidthConfig(allocation="uniform", round_to=1))
    try:
        return plan_widths(model, inputs, share, config=config)
    except TargetUnreachableError as error:
        return plan_widths(model, inputs, error.smallest, config=config)


def run(model, inputs):
    outputs = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return [t for t in tree_leaves(outputs) if isinstance(t, torch.Tensor)]


def double(inputs):
    return tree_map(lambda t: t.double() if t.is_floating_point() else t, inputs)


def count(model):
    return sum(p.numel() for p in model.parameters())


def dead(model, steps):
    """A copy in which every weight that makes or reads a removed channel is zero.

    Weights that have a norm are plain there: those that are left stay what they are.
    """
    model = copy.deepcopy(model)
    for layer in [m for m in model.modules() if parametrize.is_parametrized(m, "weight")]:
        weight = nn.Parameter(layer.weight.detach())
        layer.__class__ = type(layer).__bases__[0]  # torch removes it from the original, too
        del layer.parametrizations
        layer.weight = weight
    for step in map(_of_plain_weight, steps):
        layer, removed = model.get_submodule(step.layer), torch.tensor(step.removed)
        if step.dim == "in":
            size = layer.weight.shape[1]
            rows = layer.weight.data.view(step.width // size, -1, *layer.weight.shape[1:])
            for index in removed.tolist():  # of a grouped convolution: one block of rows
                rows[index // size, :, index % size] = 0
        elif step.dim == "out":
            for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
                if tensor.dim():
                    tensor.data.index_fill_(0, removed, 0)
        elif ":" in step.dim:
            name, axis = step.dim.split(":")
            getattr(layer, name).data.index_fill_(int(axis), removed, 0)
    return model


def _of_plain_weight(step):
    """A cut of a weight's direction as one of the weight; its length is no longer there."""
    layer, _, name = step.layer.partition(".parametrizations.")
    if not name:
        return step
    dim = step.dim.replace("original1", name) if step.dim.startswith("original1") else "-"
    return replace(step, layer=layer, dim=dim)


class Remaining(nn.Module):
    """A norm over channels that sees only those that are left."""

    def __init__(self, norm, removed):
        super().__init__()
        self.norm, self.width = norm, len(norm.weight)
        self.kept = [i for i in range(self.width) if i not in removed]

    def forward(self, x):
        norm, kept = self.norm, self.kept
        axis = 1 if isinstance(norm, nn.GroupNorm) else x.dim() - 1
        seen, weight = x.index_select(axis, torch.tensor(kept)), norm.weight[kept]
        if isinstance(norm, nn.GroupNorm):
            y = functional.group_norm(seen, norm.num_groups, weight, norm.bias[kept], norm.eps)
        elif isinstance(norm, nn.LayerNorm):
            y = functional.layer_norm(seen, (len(kept),), weight, norm.bias[kept], norm.eps)
        else:
            y = functional.rms_norm(seen, (len(kept),), weight, norm.eps)
        return torch.zeros_like(x).index_copy(axis, torch.tensor(kept), y)


def reference(model, steps):
    """The dead copy; its norms over channels see what is left."""
    model = dead(model, steps)
    for step in [step for step in steps if step.dim == "weight:0"]:
        layer = model.get_submodule(step.layer)
        if isinstance(layer, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
            model.set_submodule(step.layer, Remaining(layer, step.removed))
    return model
