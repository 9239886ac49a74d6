"""Which axes of a network's inputs are free in a file, and inputs of other sizes."""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map

from pbcompress.core.inputs import Call, batch_places, map_tensors, tensors_of
from pbcompress.errors import CompressionError

__all__ = [
    "Dynamic",
    "FreeAxis",
    "Inputs",
    "check_samples",
    "leaf_names",
    "name_arguments_",
    "other_sizes",
    "resized",
]

Axes = Mapping[int, str | None]  # None: this axis is fixed
Dynamic = Mapping[str, Axes] | Literal["batch", "auto"] | None
BATCH = "batch"


@dataclass(frozen=True)
class FreeAxis:
    """One size that may vary, and where it is in the inputs.

    Attributes:
        name: In the file.
        size: In the example.
        places: Number of the tensor and axis, for each axis that has this size.
        is_batch: Whether it is the batch.
    """

    name: str
    size: int
    places: tuple[tuple[int, int], ...]
    is_batch: bool = False


class Inputs:
    """The inputs of one forward pass in the order of forward's arguments.

    Args:
        network: What takes them.
        call: Positional and named arguments.

    Attributes:
        call: The same, with every argument that can be positional in its place.
        arguments: Values by forward's names.
        names: Of the tensors: that of the argument, with keys and indices behind where it is a
            dict or a sequence.
        tensors: In this order a file takes them.

    Raises:
        CompressionError: They are not what forward takes.
    """

    def __init__(self, network: nn.Module, call: Call) -> None:
        args, kwargs = call
        try:
            bound = inspect.signature(network.forward).bind(*args, **kwargs)
        except TypeError as err:
            raise CompressionError(
                f"The example inputs were bound to forward{inspect.signature(network.forward)}: "
                f"{err}. Give a tuple in this order, or a dict with these names."
            ) from err
        self.call = Call(bound.args, bound.kwargs, call.batch_axes)
        self.arguments: dict[str, Any] = dict(bound.arguments)
        self.tensors = tensors_of(self.call)
        self.names = leaf_names(self.arguments) or [f"x{i}" for i in range(len(self.tensors))]
        self._batch = tuple(batch_places(network, self.call).items())

    def batch(self) -> FreeAxis:
        """Return the batch: as it was said, or the first axis of all as long as the first."""
        sizes = [self.tensors[i].shape[axis] for i, axis in self._batch]
        places = tuple(p for p, size in zip(self._batch, sizes, strict=True) if size == sizes[0])
        return FreeAxis(BATCH, sizes[0] if sizes else 1, places, is_batch=True)

    def free(self, dynamic: Dynamic) -> list[FreeAxis]:
        """Return the axes that were asked for, the batch first where it is free.

        Args:
            dynamic: See `export_onnx`.

        Raises:
            CompressionError: There is no such argument or axis, or one name is for two sizes.
        """
        batch = [self.batch()] if dynamic is not None and self.batch().places else []
        if dynamic is None or dynamic == "batch":
            return batch
        if dynamic == "auto":
            taken = {place for axis in batch for place in axis.places}
            return batch + [
                FreeAxis(f"{name}_{axis}", size, ((i, axis),))
                for i, (name, t) in enumerate(zip(self.names, self.tensors, strict=True))
                for axis, size in enumerate(t.shape)
                if size > 1 and (i, axis) not in taken
            ]
        named: dict[str, list[tuple[int, int]]] = {}
        fixed: set[tuple[int, int]] = set()
        for argument, axes in dynamic.items():
            for axis, name in self._checked(argument, axes).items():
                places = self._places(argument, axis)
                if name is None:
                    fixed.update(places)
                else:
                    named.setdefault(name, []).extend(places)
        kept = [tuple(p for p in axis.places if p not in fixed) for axis in batch]
        batch = [replace(batch[0], places=places) for places in kept if places]
        if batch:
            ours = set(batch[0].places)
            own = [name for name, places in named.items() if ours & set(places)]
            named = {n: [p for p in places if p not in ours] for n, places in named.items()}
            batch = [replace(batch[0], name=own[0] if own else BATCH)]
        return batch + [self._axis(name, places) for name, places in named.items() if places]

    def _checked(self, argument: str, axes: object) -> Axes:
        if argument not in self.arguments:
            raise CompressionError(
                f"dynamic names {argument!r}, and forward was called with "
                f"{', '.join(self.arguments)}. Use the names of forward's arguments."
            )
        is_right = isinstance(axes, Mapping) and all(
            isinstance(axis, int) and isinstance(name, str | None) for axis, name in axes.items()
        )
        if not is_right:
            raise CompressionError(
                f"dynamic[{argument!r}] is {axes!r}; give a dict from axis to name, such as "
                '{2: "height"}.'
            )
        return axes  # type: ignore[return-value]

    def _places(self, argument: str, axis: int) -> list[tuple[int, int]]:
        own = {id(t) for t in tensors_of(self.arguments[argument])}
        places = []
        for i, t in enumerate(self.tensors):
            if id(t) in own:
                if not -t.dim() <= axis < t.dim():
                    raise CompressionError(
                        f"dynamic[{argument!r}] names axis {axis}, and {self.names[i]!r} has shape "
                        f"{tuple(t.shape)}."
                    )
                places.append((i, axis % t.dim()))
        return places

    def _axis(self, name: str, places: Sequence[tuple[int, int]]) -> FreeAxis:
        sizes = {self.tensors[i].shape[axis] for i, axis in places}
        if len(sizes) > 1 or min(sizes) < 2:
            raise CompressionError(
                f"The axis {name!r} of dynamic has the sizes {sorted(sizes)} in the example inputs."
                " Give one name to one size, and an example of at least 2."
            )
        return FreeAxis(name, sizes.pop(), tuple(places))

    def torch_shapes(
        self, free: Sequence[FreeAxis], dim: Any = torch.export.Dim.AUTO
    ) -> dict[str, Any]:
        """Return ``dynamic_shapes`` for torch.export.

        Args:
            free: The axes.
            dim: What each is; with ``AUTO`` torch may fix it, and the file shows which it did.
        """
        places = {place for axis in free for place in axis.places}
        numbers = {id(t): i for i, t in enumerate(self.tensors)}

        def shape(leaf: object) -> dict[int, Any] | None:
            if not isinstance(leaf, Tensor):
                return None
            own = [axis for i, axis in places if i == numbers[id(leaf)]]
            return dict.fromkeys(own, dim) or None

        return {name: tree_map(shape, value) for name, value in self.arguments.items()}


def name_arguments_(network: nn.Module, call: Call) -> None:
    """Give a copy whose forward takes ``**kwargs`` a signature with the names that are used."""
    forward = network.forward
    own = inspect.signature(forward)
    kinds = {parameter.kind: name for name, parameter in own.parameters.items()}
    rest = kinds.get(inspect.Parameter.VAR_KEYWORD)
    if rest is None:
        return
    parameters = [p for name, p in own.parameters.items() if name != rest]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
        for name in call.kwargs
        if name not in own.parameters
    ]

    def named(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    named.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    network.forward = named


def leaf_names(values: object, prefix: str = "") -> list[str] | None:
    """Return names for the tensors in a structure: keys and indices, joined by underscores.

    None where it holds tensors in objects that torch does not look into.

    Example:
        >>> leaf_names({"a": torch.zeros(1), "b": [torch.zeros(1), 2.0]})
        ['a', 'b_0']
    """
    names = []
    for path, leaf in tree_flatten_with_path(values)[0]:
        if isinstance(leaf, Tensor):
            name = "_".join(re.sub(r"\W", "_", keystr((key,)).strip("[].'")) for key in path)
            names.append(f"{prefix}{name}" if name[:1].isdigit() else name)
    return names if len(names) == len(tensors_of(values)) else None


def resized(call: Call, sizes: Mapping[FreeAxis, int]) -> Call:
    """Return inputs in which some axes are repeated or cut to other sizes."""
    numbers = {id(t): i for i, t in enumerate(tensors_of(call))}

    def resize(t: Tensor) -> Tensor:
        own = numbers[id(t)]
        for free, size in sizes.items():
            for i, axis in free.places:
                if i == own and t.shape[axis] != size:
                    repeats = math.ceil(size / t.shape[axis])
                    t = torch.cat([t] * repeats, axis).narrow(axis, 0, size).clone()
        return t

    return map_tensors(call, resize)


def other_sizes(
    run: Callable[[Call], object], call: Call, axis: FreeAxis, most: int = 2
) -> tuple[list[int], Exception | None]:
    """Return sizes of an axis, not that of the example, at which a network runs.

    Args:
        run: The network.
        call: Inputs.
        axis: What varies.
        most: How many sizes are enough.

    Returns:
        The sizes, and the network's error at the last one at which it did not run.
    """
    n, problem = axis.size, None
    found: list[int] = []
    for size in dict.fromkeys((n + 1, max(n // 2, 1), 2 * n, 3 * n, n - 1)):
        if size < 1 or size == n or len(found) == most:
            continue
        try:
            run(resized(call, {axis: size}))
            found.append(size)
        except Exception as err:
            problem = err
    return found, problem


def check_samples(inputs: Inputs, others: Sequence[Inputs], free: Sequence[FreeAxis]) -> None:
    """Raise unless samples have the types and, but for free axes and the batch, the shapes.

    Raises:
        CompressionError: One has not.
    """
    anything = {place for axis in [*free, inputs.batch()] for place in axis.places}
    for number, other in enumerate(others):
        pairs = list(zip(inputs.tensors, other.tensors, strict=False))
        fits = len(inputs.tensors) == len(other.tensors) and all(
            a.dtype == b.dtype
            and a.dim() == b.dim()
            and all(
                m == n or (i, axis) in anything
                for axis, (m, n) in enumerate(zip(a.shape, b.shape, strict=True))
            )
            for i, (a, b) in enumerate(pairs)
        )
        if not fits:
            raise CompressionError(
                f"samples[{number}] has {_described(other.tensors)}, and the example inputs have "
                f"{_described(inputs.tensors)}. Only the batch and free axes may differ."
            )


def _described(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{str(t.dtype)[6:]}{list(t.shape)}" for t in tensors) or "no tensor"
