"""How a layer is a linear regression: its features, its targets, and the weights from a solution.

An `OutputView` takes the sums that a layer put out before the cut as targets, and all that a sum
reads as features, kernel positions included. A `ChannelView` takes the channels that a layer read
before the cut as targets and those that are left as features, and merges the map between them into
the weights: much smaller, exact where the removed channels are linear in the others, and all that
there is where a layer does not show its sums.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from pbcompress.compensation.readers import Reader
from pbcompress.compensation.ridge import Fit, Moments
from pbcompress.structure.dimensions import keep

__all__ = ["ChannelView", "OutputView", "View", "view_of"]

_Conv = nn.modules.conv._ConvNd
_Transposed = nn.modules.conv._ConvTransposeNd
FEATURES = 1152
"""The most features of a regression with kernel positions; its cost grows with their cube."""


class View(Protocol):
    """A layer as a regression.

    Attributes:
        groups: Regressions side by side.
        features: Of each.
        targets: Of each.
        has_bias: Whether the layer has a bias, which takes what the means of features gave.
    """

    groups: int
    features: int
    targets: int
    has_bias: bool

    def sizes(self, x: Any, y: Any) -> tuple[int, int]:
        """Return how many entries a batch has, and how many positions an entry."""

    def target_rows(self, x: Any, y: Any, index: Tensor) -> Tensor:
        """Return the targets at some positions, from the original: (rows, groups, targets)."""

    def feature_rows(self, x: Any, y: Any, index: Tensor) -> Tensor:
        """Return the features at some positions, from what is left: (rows, groups, features)."""

    def start(self) -> tuple[Tensor, Tensor]:
        """Return weights and biases of what the cut has left."""

    def write_(self, fit: Fit, norm: Any) -> None:
        """Put a solution into the layer, and its bias into a norm's mean where it has none."""


def view_of(reader: Reader, whole: nn.Module, left: nn.Module, max_bytes: int) -> View:
    """Return the regression of a layer.

    Args:
        reader: The layer.
        whole: It, before the cut.
        left: It, after the cut.
        max_bytes: A larger one than this, twice, gives way to a smaller one.
    """
    if reader.weight == "weight" and not isinstance(whole, _Transposed):
        view = OutputView(reader, left)
        small = 2 * Moments.bytes_of(view.groups, view.features, view.targets) <= max_bytes
        if small and (view.features <= FEATURES or not isinstance(whole, _Conv)):
            return view
    return ChannelView(reader, whole, left)


class OutputView:
    """See the module.

    Args:
        reader: The layer.
        left: It, after the cut.
    """

    def __init__(self, reader: Reader, left: nn.Module) -> None:
        layer: Any = left
        self.layer: Any = layer
        is_turned = reader.axis == 0  # outputs along its second axis
        self.weight: Tensor = layer.weight.T if is_turned else layer.weight
        self.kept = reader.kept.get(int(is_turned))
        self.groups: int = getattr(left, "groups", 1)
        self.targets = self.weight.shape[0] // self.groups
        self.features = self.weight[0].numel()
        self.bias: Tensor | None = getattr(left, "bias", None)
        self.has_bias = self.bias is not None

    def sizes(self, x: Tensor, y: Tensor) -> tuple[int, int]:
        """See `View`."""
        entries, positions, _ = _flat(self.layer, y).shape
        return entries, positions

    def target_rows(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """See `View`."""
        y = _flat(self.layer, y)
        if self.kept is not None:
            y = y.index_select(2, self.kept.to(y.device))
        return y[:, index].reshape(-1, self.groups, self.targets)

    def feature_rows(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """See `View`."""
        layer = self.layer
        if not isinstance(layer, _Conv):
            return _flat(layer, x)[:, index].reshape(-1, 1, self.features)
        sizes = tuple(y.shape[y.dim() - len(layer.kernel_size) :])
        x = x.reshape(-1, *x.shape[x.dim() - len(sizes) - 1 :])
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        places: Any = (slice(None), slice(None), *_taps(layer, sizes, index))
        patches = x[places]
        by_row = patches.transpose(1, 2).reshape(len(x) * len(index), self.groups, self.features)
        return by_row

    def start(self) -> tuple[Tensor, Tensor]:
        """See `View`."""
        weight = self.weight.detach().double()
        weight = weight.reshape(self.groups, self.targets, self.features)
        bias = self.bias
        wide = weight.new_zeros(weight.shape[:2]) if bias is None else bias.detach().double()
        return weight, wide.reshape(weight.shape[:2])

    def write_(self, fit: Fit, norm: Any) -> None:
        """See `View`."""
        self.weight.copy_(fit.weight.reshape(self.weight.shape))
        if self.bias is not None:
            self.bias.copy_(fit.bias.flatten())
        elif norm is not None:
            norm.running_mean.sub_(fit.bias.flatten().to(norm.running_mean))


class ChannelView:
    """See the module.

    Args:
        reader: The layer.
        whole: It, before the cut.
        left: It, after the cut.
    """

    def __init__(self, reader: Reader, whole: nn.Module, left: nn.Module) -> None:
        self.layer: Any = left
        self.reader, self.axis = reader, reader.axis
        self.weight = getattr(left, reader.weight)
        rows = {axis: kept for axis, kept in reader.kept.items() if axis != reader.axis}
        self.whole = keep(getattr(whole, reader.weight).detach(), rows)
        self.groups = 1 if isinstance(left, _Transposed) else getattr(left, "groups", 1)
        self.targets = self.whole.shape[self.axis]
        self.features = self.weight.shape[self.axis]
        self.kept = reader.kept.get(self.axis, torch.arange(self.targets))
        self.bias = getattr(left, reader.weight.replace("weight", "bias"), None)
        self.has_bias = self.bias is not None

    def sizes(self, x: Any, y: Any) -> tuple[int, int]:
        """See `View`."""
        entries, positions, _ = _flat(self.layer, x).shape
        return entries, positions

    def target_rows(self, x: Any, y: Any, index: Tensor) -> Tensor:
        """See `View`."""
        return _flat(self.layer, x)[:, index].reshape(-1, self.groups, self.targets)

    def feature_rows(self, x: Any, y: Any, index: Tensor) -> Tensor:
        """See `View`."""
        return _flat(self.layer, x)[:, index].reshape(-1, self.groups, self.features)

    def start(self) -> tuple[Tensor, Tensor]:
        """See `View`."""
        chosen = functional.one_hot(self.kept, self.targets).T.double().to(self.weight.device)
        return chosen.expand(self.groups, -1, -1), chosen.new_zeros(self.groups, self.targets)

    def write_(self, fit: Fit, norm: Any) -> None:
        """See `View`."""
        whole = self.whole.double().movedim(self.axis, 1).unflatten(0, (self.groups, -1))
        rows = whole.flatten(3) if whole.dim() > 3 else whole[..., None]
        merged = torch.einsum("gmft,gfk->gmkt", rows, fit.weight)
        merged = merged.reshape(-1, self.features, *whole.shape[3:]).movedim(1, self.axis)
        self.weight.copy_(merged)
        shift = torch.einsum("gmft,gf->gm", rows, fit.bias).flatten()
        if self.bias is not None:
            self.bias.add_(shift)
        elif norm is not None:
            norm.running_mean.sub_(shift.to(norm.running_mean))


def _flat(layer: nn.Module, values: Any) -> Tensor:
    """Return values as (entries, positions, channels)."""
    if isinstance(values, PackedSequence):
        values = values.data
    if isinstance(layer, _Conv):
        batched = values.reshape(-1, *values.shape[values.dim() - len(layer.kernel_size) - 1 :])
        flat: Tensor = batched.flatten(2).transpose(1, 2)
        return flat
    rows: Tensor = values if values.dim() > 1 else values[None]
    return rows.reshape(len(rows), -1, rows.shape[-1])


def _taps(layer: Any, sizes: tuple[int, ...], index: Tensor) -> list[Tensor]:
    """Return, for each spatial axis, where the taps lie that some positions read."""
    count = len(sizes)
    grids = []
    for axis, place in enumerate(torch.unravel_index(index, sizes)):
        first = place * layer.stride[axis]
        taps = torch.arange(layer.kernel_size[axis], device=index.device) * layer.dilation[axis]
        shape = [len(index), *[-1 if axis == other else 1 for other in range(count)]]
        grids.append((first[:, None] + taps).reshape(shape))
    return grids
