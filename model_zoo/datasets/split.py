"""Split samples so that every class keeps its share."""

import torch
from torch import Tensor

__all__ = ["stratified_split"]


def stratified_split(labels: Tensor, num_chosen: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Choose ``num_chosen`` samples at random, every class in proportion.

    The choice depends on the arguments only; torch's global generator is not touched.

    Args:
        labels: Classes of the samples, int64 of shape ``(N,)``, none negative.
        num_chosen: How many to choose, 0 to ``N``.
        seed: Names the choice.

    Returns:
        Indices of the others and of the chosen ones, int64, each in ascending order. The number
        chosen in a class differs from its exact share by less than one.

    Raises:
        ValueError: ``num_chosen`` is out of range.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> others, chosen = stratified_split(labels, 3, seed=0)
        >>> labels[others].tolist(), labels[chosen].tolist()
        ([0, 0, 1], [0, 0, 1])
    """
    if not 0 <= num_chosen <= len(labels):
        raise ValueError(f"cannot choose {num_chosen} of {len(labels)} samples")
    generator = torch.Generator().manual_seed(seed)
    is_chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, quota in enumerate(_quotas(torch.bincount(labels).tolist(), num_chosen)):
        members = (labels == label).nonzero().flatten()
        is_chosen[members[torch.randperm(len(members), generator=generator)[:quota]]] = True
    return (~is_chosen).nonzero().flatten(), is_chosen.nonzero().flatten()


def _quotas(class_sizes: list[int], num_chosen: int) -> list[int]:
    # Largest remainder, in whole numbers: round every share down, then give what is missing to
    # the classes that lost most, the lower label first on a tie.
    total = max(sum(class_sizes), 1)
    quotas = [size * num_chosen // total for size in class_sizes]
    lost = [size * num_chosen % total for size in class_sizes]
    by_loss = sorted(range(len(class_sizes)), key=lambda label: -lost[label])
    for label in by_loss[: num_chosen - sum(quotas)]:
        quotas[label] += 1
    return quotas
