"""The end of a dendrite phase: the best of the pool, the best nodes, and their first U."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pbcompress.config.dendrites import LowRank
from pbcompress.dendrites.correlation import GAIN, SLOPE, mean_scores, node_scores
from pbcompress.dendrites.layer import DendriteLayer
from pbcompress.dendrites.nodes import adopt_nodes_, groups_of

__all__ = ["accept_", "selected"]


def selected(
    values: Mapping[str, Tensor],
    units: Mapping[str, Tensor],
    prices: Mapping[str, int],
    budget: int,
) -> dict[str, Tensor]:
    """Return the nodes of each layer that a budget of parameters is best spent on.

    Units are taken in the order of value for each parameter, as long as they fit.

    Args:
        values: By layer, what each node is worth, shape (nodes,).
        units: By layer, nodes that stay or go together, shape (units, nodes of a unit).
        prices: By layer, the parameters of a unit.
        budget: Parameters in all.

    Returns:
        By layer, the nodes that stay, ascending; possibly none.

    Example:
        >>> values = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([8.0])}
        >>> units = {"a": torch.tensor([[0], [1]]), "b": torch.tensor([[0]])}
        >>> selected(values, units, {"a": 2, "b": 4}, budget=6)
        {'a': tensor([0]), 'b': tensor([0])}
    """
    offers = [
        (float(value) / prices[name], name, number)
        for name, of_layer in units.items()
        for number, value in enumerate(values[name][of_layer].sum(1))
    ]
    offers.sort(key=lambda offer: -offer[0])
    taken: dict[str, list[int]] = {name: [] for name in units}
    for _, name, number in offers:
        if prices[name] <= budget:
            budget -= prices[name]
            taken[name].append(number)
    return {name: units[name][taken[name]].flatten().sort().values for name in units}


def _units(worth: Tensor, layer: DendriteLayer) -> Tensor:
    """Return nodes that go together: the nth best of every group, so that groups stay alike."""
    groups = groups_of(layer.dendrites[-1])
    if isinstance(layer.config.form, LowRank):  # its nodes share a map
        return torch.arange(len(worth))[None]
    if groups == 1 or groups == len(worth):
        return torch.arange(len(worth))[:, None]
    per_group = worth.reshape(groups, -1)
    order = per_group.sort(dim=1, descending=True, stable=True).indices
    return (order + torch.arange(groups)[:, None] * per_group.shape[1]).T


def accept_(layers: Mapping[str, DendriteLayer], sums: Mapping[str, Tensor]) -> None:
    """End the dendrite phase of ``layers``: their newest sets add to the output from now on.

    Each node takes the candidate of the pool with the highest |r|. With ``node_share`` below 1 the
    nodes of all layers compete for that part of the set's parameters; a node is worth the squared
    gain, which is the decrease of the loss that the best U brings where its curvature is alike.

    Args:
        layers: Layers whose newest set is a candidate.
        sums: By layer, sums of `correlation.score_leaf` over the last epoch; layers
            that are missing saw no error.
    """
    means: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if name in sums:
            found = mean_scores(sums[name])
            best = _adopt_best_(layer, node_scores(found))
            means[name] = found[:, best, torch.arange(found.shape[2], device=best.device)]
        layer.end_candidacy()
    rule = next(iter(layers.values())).config.scored_rule
    if rule.initial_gain == "least_squares":
        for name, mean in means.items():
            layers[name].gains[-1].data.copy_(mean[SLOPE] / len(layers))
    if rule.node_share < 1:
        _select_(layers, means, rule.node_share)


def _adopt_best_(layer: DendriteLayer, scores: Tensor) -> Tensor:
    """Give each node the weights of its best candidate; return which one that was."""
    if isinstance(layer.config.form, LowRank):  # its nodes share a map
        best = scores.mean(1).argmax().expand(scores.shape[1])
    else:
        best = scores.argmax(0)
    for number, (branch, links) in enumerate(layer.candidates[1:], 1):
        winners = best == number
        if isinstance(layer.config.form, LowRank) and bool(winners.all()):
            layer.dendrites[-1].load_state_dict(branch.state_dict())
        elif not isinstance(layer.config.form, LowRank):
            adopt_nodes_(layer.dendrites[-1], branch, winners)
        layer.links[-1].data.copy_(torch.where(winners, links.detach(), layer.links[-1].detach()))
    return best


def _select_(
    layers: Mapping[str, DendriteLayer], means: Mapping[str, Tensor], share: float
) -> None:
    values, units, prices, budget = {}, {}, {}, 0
    for name, layer in layers.items():
        size = sum(p.numel() for p in layer.set_parameters(layer.num_sets - 1))
        size += layer.gains[-1].numel()
        budget += int(share * size)
        gain = means[name][GAIN].square() if name in means else torch.zeros(layer.nodes)
        values[name] = (gain if gain.dim() == 1 else gain.sum(1)).cpu()
        units[name] = _units(values[name], layer)
        prices[name] = size // len(units[name])
    for name, kept in selected(values, units, prices, budget).items():
        if len(kept) < layers[name].nodes:
            layers[name].keep_nodes(layers[name].num_sets - 1, kept)
