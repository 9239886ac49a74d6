"""The original with the removed channels blanked: what a shrunk network must equal."""

import copy

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from pbcompress import shrink


def count(model):
    """Parameters, shared ones once."""
    return sum({id(p): p.numel() for p in model.parameters()}.values())


def run(model, inputs):
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
    return [t for t in tree_leaves(model(*args, **kwargs)) if isinstance(t, torch.Tensor)]


def masked(model, steps):
    """A copy without the removed channels: blank in every layer's input, zero in bare tensors."""
    model = copy.deepcopy(model)
    for step in steps:
        name, _, axis = step.dim.partition(":")
        if axis:
            tensor = getattr(model.get_submodule(step.layer), name)
            tensor.data.index_fill_(int(axis), torch.tensor(step.removed), 0)
        if step.dim == "in":
            layer = model.get_submodule(step.layer)
            axis = -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)

            def blank(_, args, axis=axis, removed=step.removed):
                kept = torch.ones(args[0].shape[axis], dtype=torch.bool)
                kept[list(removed)] = False
                shape = [1] * args[0].dim()
                shape[axis] = -1
                return (args[0] * kept.reshape(shape), *args[1:])

            layer.register_forward_pre_hook(blank)
    return model


def assert_equals_masked(model, plan, inputs):
    small = shrink(model, plan).double().eval()
    reference = masked(model, plan.steps).double().eval()
    double = tree_map(lambda t: t.double() if t.is_floating_point() else t, inputs)
    with torch.no_grad():
        # float64: only the order of the sums differs
        torch.testing.assert_close(run(small, double), run(reference, double), rtol=1e-9, atol=1e-9)
