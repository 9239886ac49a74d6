"""What a layer costs, and where two counters of FLOPs differ. No torch, no ONNX."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Gap", "LayerCost", "by_kind", "explain", "gaps", "side_by_side"]

SMALL = 0.02  # two counts that differ by less are not explained
KINDS = {
    "convolution": ("conv", "convolution", "_convolution", "_convolution_mode"),
    "matrix product": (
        *("linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "einsum"),
        *("lstm", "gru", "rnn_tanh", "rnn_relu", "bilinear", "scaled_dot_product_attention"),
        *("mv", "dot", "vdot", "addbmm", "addmv", "tensordot", "inner"),
        *("linalg_multi_dot", "chain_matmul", "linalg_matrix_power"),
    ),
}
HIDDEN_PRODUCTS = ("multi_head_attention_forward", "cov", "corrcoef", "linalg_matrix_exp")
KIND_OF = {operation: kind for kind, names in KINDS.items() for operation in names}


@dataclass(frozen=True)
class LayerCost:
    """Cost of one module that holds parameters or does counted work itself.

    Attributes:
        kind: Class of the module, or operation of a file.
        params: Parameter elements that it owns; a shared one counts at its first owner.
        flops: Multiply-adds of one sample.
        width: Output channels, or None where the module has no such number.
    """

    kind: str
    params: int
    flops: int
    width: int | None = None


@dataclass(frozen=True)
class Gap:
    """FLOPs of one kind of operation by two counters that do not agree.

    Attributes:
        operation: "convolution", "matrix product", or an operation's own name.
        fvcore: As fvcore counts it.
        dispatched: As torch's FlopCounterMode counts it.
        within: Operations that fvcore leaves out and FlopCounterMode sees as matrix products.
    """

    operation: str
    fvcore: int
    dispatched: int
    within: tuple[str, ...] = ()

    def __str__(self) -> str:
        left_out = f" (fvcore leaves out {', '.join(self.within)})" if self.within else ""
        return f"{self.operation} {self.fvcore:,} and {self.dispatched:,}{left_out}"


def by_kind(counts: Mapping[str, float]) -> dict[str, int]:
    """Add the FLOPs of operations up by kind: all convolutions, all matrix products, the others.

    Example:
        >>> by_kind({"linear": 6, "aten.addmm": 4, "batch_norm": 2})
        {'matrix product': 10, 'batch_norm': 2}
    """
    found: Counter[str] = Counter()
    for operation, flops in counts.items():
        name = operation.rpartition(".")[2]
        found[KIND_OF.get(name, name)] += int(flops)
    return {kind: flops for kind, flops in found.items() if flops}


def gaps(
    fvcore: Mapping[str, int], dispatched: Mapping[str, int], uncounted: Iterable[str] = ()
) -> list[Gap]:
    """Return the operations that two counters count differently, the largest difference first.

    The differences add up to that of the totals.

    Args:
        fvcore: FLOPs by kind of operation.
        dispatched: The same by FlopCounterMode.
        uncounted: Operations that fvcore does not know.
    """
    known = [name.removeprefix("aten::") for name in uncounted]
    within = tuple(name for name in known if name in HIDDEN_PRODUCTS)
    found = []
    for name in dict.fromkeys([*fvcore, *dispatched]):
        a, b = fvcore.get(name, 0), dispatched.get(name, 0)
        if a != b:
            found.append(Gap(name, a, b, within if name == "matrix product" and b > a else ()))
    return sorted(found, key=lambda gap: -abs(gap.fvcore - gap.dispatched))


def explain(
    fvcore: Mapping[str, int], dispatched: Mapping[str, int], uncounted: Iterable[str] = ()
) -> str:
    """Return in a sentence why two counts differ by more than 2 %; "" where they do not.

    Example:
        >>> explain({"matrix product": 90, "batch_norm": 10}, {"matrix product": 90})
        'fvcore counts 100 FLOPs and FlopCounterMode 90: batch_norm 10 and 0.'
    """
    a, b = sum(fvcore.values()), sum(dispatched.values())
    if abs(a - b) <= SMALL * max(a, b):
        return ""
    parts = ", ".join(map(str, gaps(fvcore, dispatched, uncounted)))
    return f"fvcore counts {a:,} FLOPs and FlopCounterMode {b:,}: {parts}."


def side_by_side(
    before: Mapping[str, LayerCost], after: Mapping[str, LayerCost]
) -> dict[str, tuple[LayerCost | None, LayerCost | None]]:
    """Return the layers of two networks by name; None where one of them lacks it.

    A layer of the second that lies under one of the first (its dendrites, its parts in a file)
    counts there, so every layer counts once.

    Example:
        >>> old, new = LayerCost("Conv2d", 9, 90, 4), LayerCost("Conv2d", 5, 50, 2)
        >>> parts = {"a.base_layer": new, "a.dendrites.0": LayerCost("Conv2d", 1, 10, 2)}
        >>> side_by_side({"a": old}, parts)["a"][1]
        LayerCost(kind='Conv2d', params=6, flops=60, width=2)
    """
    parts: dict[str, dict[str, LayerCost]] = {name: {} for name in before}
    for name, layer in after.items():
        above = [name.rsplit(".", up)[0] for up in range(name.count(".") + 1)]
        owner = next((other for other in above if other in before), name)
        parts.setdefault(owner, {})[name] = layer
    pairs = {name: (before.get(name), _joined(name, own)) for name, own in parts.items()}
    return {
        name: pair
        for name, pair in pairs.items()
        if any(side and (side.params or side.flops) for side in pair)
    }


def _joined(name: str, parts: Mapping[str, LayerCost]) -> LayerCost | None:
    if not parts:
        return None
    ordered = [parts[key] for key in (f"{name}.base_layer", name) if key in parts]
    ordered += reversed(list(parts.values()))  # of the parts of a file the last puts out
    return LayerCost(
        max(ordered, key=lambda part: part.flops).kind,
        sum(part.params for part in parts.values()),
        sum(part.flops for part in parts.values()),
        next((part.width for part in ordered if part.width is not None), None),
    )
