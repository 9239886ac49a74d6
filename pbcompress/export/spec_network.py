"""A network that is read from a file and needs no source code: weights, and a list of operations.

The file is safetensors. Its header holds the spec, plain data::

    arguments   by name, the inputs of forward; {"input": i} stands for a tensor
    steps       [operation, arguments, named arguments, layer], in the order in which they run
    outputs     what forward returns
    weights     by name, "parameter" or "buffer", and its axes in the order of memory
    example     types and shapes of inputs and outputs of one forward pass

Within them {"input": i}, {"weight": name} and {"step": i} stand for values, {"dtype": name} and the
like for words of torch. Nothing is unpickled or evaluated; `spec_operations` lists what may be
called.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pbcompress.core.deadline import Deadline
from pbcompress.core.inputs import tensors_of
from pbcompress.core.json_documents import check_kind, damage_named
from pbcompress.core.records import from_data
from pbcompress.core.tensor_files import read_tensors
from pbcompress.errors import CompressionError, first_line
from pbcompress.export.spec_arguments import DTYPES, MAKERS, check_call, check_sizes
from pbcompress.export.spec_operations import operation

__all__ = ["KIND", "VERSION", "GraphNetwork", "described", "laid_out", "load_spec"]

KIND, VERSION = "pbcompress network", 2  # with a SHA-256
WORDS: dict[str, Mapping[str, Any]] = {
    "dtype": DTYPES,
    "layout": {"strided": torch.strided},
    "memory_format": {
        name: getattr(torch, name)
        for name in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
    },
    "float": {name: float(name) for name in ("inf", "-inf", "nan")},
}
NUMBERS = ("aten.sym_size.int", "operator.")  # what returns numbers, computed from sizes
MOST_STEPS = 20_000
MOST_WORK = 2**40  # elements that all steps together make
MOST_BYTES = 2**32
MOST_SECONDS = 60.0


@dataclass(frozen=True)
class _Ends:
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Example:
    inputs: tuple[_Ends, ...]
    outputs: tuple[_Ends, ...]


@dataclass(frozen=True)
class Spec:
    """What a header holds, beside its kind and version; see the module."""

    arguments: Mapping[str, Any]
    steps: tuple[tuple[str, tuple[Any, ...], Mapping[str, Any], str], ...]
    outputs: Any
    weights: Mapping[str, tuple[Literal["parameter", "buffer"], tuple[int, ...]]]
    example: _Example


@dataclass(frozen=True)
class _Value:
    """What stands for a value.

    Attributes:
        kind: "input", "weight", "step", or "device": the one on which the network is.
        key: Which one.
    """

    kind: str
    key: int | str


@dataclass(frozen=True)
class _Step:
    """An operation of a layer, and the values that no later one needs."""

    name: str
    layer: str
    call: Callable[..., Any]
    args: Any
    kwargs: Any
    done: tuple[_Value, ...]
    is_checked: bool  # in every run: it depends on sizes


class GraphNetwork(nn.Module):
    """A network in its inference form that runs its operations one by one.

    Its state dict has the names of the network that it was made from. Modes make no difference to
    it; its weights can be moved, trained and exported like any others.

    Args:
        spec: See the module.
        weights: By name.
    """

    def __init__(self, spec: Spec, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, (kind, order) in spec.weights.items():
            self._place(name, laid_out(weights[name], order), kind == "buffer")
        self._arguments = {name: _decoded(tree) for name, tree in spec.arguments.items()}
        self._outputs = _decoded(spec.outputs)
        trees = [(_decoded(list(step[1])), _named(step[0], step[2])) for step in spec.steps]
        last = {value: i for i, tree in enumerate(trees) for value in _values_in(tree)}
        last |= dict.fromkeys(_values_in(self._outputs), len(trees))
        done: dict[int, list[_Value]] = {}
        for value, index in last.items():
            done.setdefault(index, []).append(value)
        names = [step[0] for step in spec.steps]
        numbers = {
            _Value("step", i)
            for i, name in enumerate(names)
            if name.startswith(NUMBERS) and name != "operator.getitem"
        }
        self._steps = [
            _Step(
                name=name,
                layer=spec.steps[i][3],
                call=operation(name),
                args=trees[i][0],
                kwargs=trees[i][1],
                done=tuple(done.get(i, ())),
                is_checked=not numbers.isdisjoint(_values_in(trees[i])),
            )
            for i, name in enumerate(names)
        ]

    def _place(self, name: str, tensor: Tensor, is_buffer: bool) -> None:
        *path, own = name.split(".")
        owner: nn.Module = self
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if is_buffer:
            owner.register_buffer(own, tensor)
        else:
            owner.register_parameter(own, nn.Parameter(tensor, requires_grad=False))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network on what the network that it was made from takes."""
        given = dict(zip(self._arguments, args, strict=False)) | kwargs
        if len(args) > len(self._arguments) or not given.keys() <= self._arguments.keys():
            raise CompressionError(
                f"The network was called with {len(args)} positional inputs and named ones "
                f"({', '.join(kwargs) or 'none'}); it takes {', '.join(self._arguments)}."
            )
        inputs: dict[_Value, Any] = {}
        for name, pattern in self._arguments.items():
            _match(pattern, given.get(name, pattern), name, inputs)
        return self._run(inputs, self.state_dict(keep_vars=True), None)

    def _run(
        self, values: dict[_Value, Any], weights: Mapping[str, Tensor], bounds: "_Bounds | None"
    ) -> Any:
        tensors = [*values.values(), *weights.values()]
        values |= {_Value("weight", name): tensor for name, tensor in weights.items()}
        device = tensors[0].device if tensors else torch.device("cpu")
        values[_Value("device", "")] = device
        for index, step in enumerate(self._steps):
            try:
                args, kwargs = _filled(step.args, values), _filled(step.kwargs, values)
                if bounds is not None or step.is_checked:
                    _check(step, args, kwargs, device)
                result = step.call(*args, **kwargs)
                if bounds is not None or step.is_checked:
                    check_sizes(result)
            except Exception as err:
                raise CompressionError(
                    f"Step {index} of the network, {step.name} of layer {step.layer!r}, failed: "
                    f"{first_line(err)}. Give inputs like those that it was saved with."
                ) from err
            values[_Value("step", index)] = result
            gone = {value: values.pop(value) for value in step.done}
            if bounds is not None:
                bounds.check(result, gone)
        return _filled(self._outputs, values)

    def check(self, example: _Example, most_bytes: int) -> None:
        """Raise unless all steps fit: run them without numbers, on shapes alone."""
        inputs = {
            _Value("input", i): torch.empty(ends.shape, dtype=DTYPES[ends.dtype], device="meta")
            for i, ends in enumerate(example.inputs)
        }
        weights = {name: t.to("meta") for name, t in self.state_dict().items()}
        bounds = _Bounds(most_bytes, list(inputs.values()))
        with torch.no_grad():
            found = described(self._run(inputs, weights, bounds))
        wanted = [{"dtype": ends.dtype, "shape": list(ends.shape)} for ends in example.outputs]
        if found != wanted:
            raise CompressionError(f"It gives {found} where {wanted} was saved")


class _Bounds:
    """What the run on shapes may come to."""

    def __init__(self, most_bytes: int, given: Sequence[Any]) -> None:
        self._most, self._work, self._bytes = most_bytes, 0, 0
        self._deadline = Deadline(MOST_SECONDS, "Use another file.")
        self.check(given, {})

    def check(self, made: Any, gone: Mapping[_Value, Any]) -> None:
        """Raise where the work, the memory or the time is over."""
        self._deadline.check("A run of the network on shapes")
        elements, size = check_sizes(made)
        self._work += elements
        self._bytes += size
        if self._work > MOST_WORK or self._bytes > self._most:
            raise CompressionError(
                f"It needs {self._bytes:,} bytes at once, of {self._most:,} that load_spec allows, "
                f"and makes {self._work:,} numbers, of {MOST_WORK:,}"
            )
        own = [held for value, held in gone.items() if value.kind in ("input", "step")]
        self._bytes -= check_sizes(own)[1]


def _check(step: _Step, args: Any, kwargs: Any, device: torch.device) -> None:
    """Raise unless an operation can take its arguments."""
    if not step.name.startswith("operator."):
        check_call(step.call, args, kwargs, device)
        return
    held, *others = args
    is_item = step.name == "operator.getitem" and isinstance(held, list | tuple)
    if kwargs or not all(type(n) in (int, float) for n in (others if is_item else args)):
        raise ValueError("it takes numbers, and an item of a list")


def laid_out(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """Return a copy whose axes lie in memory in an order, the outermost first.

    Kernels sum in another order where a weight lies otherwise, and outputs are to be bit-equal.

    Example:
        >>> laid_out(torch.zeros(2, 3), [1, 0]).stride()
        (1, 2)
    """
    if sorted(order) != list(range(tensor.dim())):
        raise ValueError(f"{list(order)} is no order of the axes of {tuple(tensor.shape)}")
    places = [order.index(axis) for axis in range(tensor.dim())]
    copy = tensor.permute(tuple(order)).clone(memory_format=torch.contiguous_format)
    return copy.permute(places)


def described(values: object) -> list[dict[str, Any]]:
    """Return type and shape of every tensor within ``values``, as JSON data.

    Example:
        >>> described((torch.zeros(2, 3), None))
        [{'dtype': 'float32', 'shape': [2, 3]}]
    """
    return [
        {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)}
        for t in tensors_of(values)
    ]


def load_spec(path: str | Path, *, device: str = "cpu", most_bytes: int = MOST_BYTES) -> nn.Module:
    """Build the network of a file of `save_spec`, without the source code that made it.

    The file may come from anyone: it is data, read without unpickling, and may call the operations
    of `spec_operations` alone, with arguments of the kinds and ranges that these take. It is run on
    shapes before it is returned, within bounds on its steps, its memory and the time of that. What
    a hostile file can still do is to compute nonsense, and to take long for it.

    Args:
        path: The file.
        device: Where to put the network.
        most_bytes: What all values may take at once, beside the weights, in a run on inputs like
            those of the example.

    Returns:
        The network in its inference form; its outputs are bit-identical on the same machine.

    Raises:
        StateMismatchError: The file is missing, truncated, changed since it was written, newer, of
            another kind, or does not describe a network of allowed operations within the bounds.

    Example:
        >>> import tempfile
        >>> from pbcompress import save_spec
        >>> net, x = nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.ones(1, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_spec(net, f"{folder}/small.safetensors", x)
        ...     again = load_spec(f"{folder}/small.safetensors")
        >>> bool(torch.equal(again(x), net(x))), list(again.state_dict())
        (True, ['0.weight', '0.bias'])
    """
    tensors, state = read_tensors(Path(path))
    where = f"The header of {path}"
    check_kind(state, KIND, VERSION, where)
    rest = {name: value for name, value in state.items() if name not in ("kind", "version")}
    spec = from_data(Spec, rest, where)
    with damage_named(f"{path} does not describe a network that can be run: it"):
        if len(spec.steps) > MOST_STEPS:
            raise ValueError(f"{len(spec.steps):,} steps of {MOST_STEPS:,}")
        network = GraphNetwork(spec, tensors)
        network.check(spec.example, most_bytes)
    return network.eval().to(device)


def _decoded(tree: Any) -> Any:
    """Return arguments as torch takes them; a `_Value` stands for what is not known yet."""
    if isinstance(tree, list):
        return [_decoded(leaf) for leaf in tree]
    if not isinstance(tree, dict):
        return tree
    ((tag, value),) = tree.items()
    if tag in ("input", "weight", "step", "device"):
        return _Value(tag, value)
    if tag == "tuple":
        return tuple(_decoded(leaf) for leaf in value)
    if tag == "dict":
        return {name: _decoded(leaf) for name, leaf in value.items()}
    return WORDS[tag][value]


def _named(operation_name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return named arguments; what makes tensors from nothing makes them where the network is."""
    found: dict[str, Any] = _decoded({"dict": kwargs})
    if operation_name.removeprefix("aten.").partition(".")[0] in MAKERS:
        found["device"] = _Value("device", "")
    return found


def _values_in(tree: Any) -> Iterator[_Value]:
    if isinstance(tree, _Value):
        yield tree
    elif isinstance(tree, list | tuple):
        for leaf in tree:
            yield from _values_in(leaf)
    elif isinstance(tree, dict):
        yield from _values_in(list(tree.values()))


def _filled(tree: Any, values: Mapping[_Value, Any]) -> Any:
    """Return a tree with values in their places."""
    if isinstance(tree, _Value):
        return values[tree]
    if isinstance(tree, list | tuple):
        return type(tree)(_filled(leaf, values) for leaf in tree)
    if isinstance(tree, dict):
        return {name: _filled(leaf, values) for name, leaf in tree.items()}
    return tree


def _match(pattern: Any, value: Any, name: str, inputs: dict[_Value, Any]) -> None:
    """Collect the tensors of an argument; raise where it is built otherwise than the example."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(pattern, _Value):
        fits = isinstance(value, Tensor)
        inputs[pattern] = value
    elif isinstance(pattern, list | tuple):
        fits = isinstance(value, list | tuple) and len(value) == len(pattern)
        pairs = list(zip(pattern, value, strict=True)) if fits else []
    elif isinstance(pattern, dict):
        fits = isinstance(value, Mapping) and value.keys() == pattern.keys()
        pairs = [(own, value[key]) for key, own in pattern.items()] if fits else []
    else:
        fits = bool(value == pattern)
    if not fits:
        raise CompressionError(
            f"The network was called with another {name} than it was saved with (a missing tensor, "
            "another number of them, or another constant). Call it like the example inputs."
        )
    for own, given in pairs:
        _match(own, given, name, inputs)
