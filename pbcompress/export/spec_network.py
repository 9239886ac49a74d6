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

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pbcompress.core.inputs import tensors_of
from pbcompress.core.json_documents import parse
from pbcompress.core.tensor_files import read_tensors
from pbcompress.errors import CompressionError, StateMismatchError, first_line
from pbcompress.export.spec_operations import operation

__all__ = ["KIND", "VERSION", "GraphNetwork", "described", "laid_out", "load_spec"]

KIND, VERSION = "pbcompress network", 1
WORDS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


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


class GraphNetwork(nn.Module):
    """A network in its inference form that runs its operations one by one.

    Its state dict has the names of the network that it was made from. Modes make no difference to
    it; its weights can be moved, trained and exported like any others.

    Args:
        spec: See the module.
        weights: By name.
    """

    def __init__(self, spec: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, (kind, order) in spec["weights"].items():
            self._place(name, laid_out(weights[name], order), kind == "buffer")
        self._arguments = {name: _decoded(tree) for name, tree in spec["arguments"].items()}
        self._outputs = _decoded(spec["outputs"])
        trees = [(_decoded(step[1]), _decoded({"dict": step[2]})) for step in spec["steps"]]
        last = {value: i for i, tree in enumerate(trees) for value in _values_in(tree)}
        last |= dict.fromkeys(_values_in(self._outputs), len(trees))
        done: dict[int, list[_Value]] = {}
        for value, index in last.items():
            done.setdefault(index, []).append(value)
        self._steps = [
            _Step(name, layer, operation(name), *trees[i], tuple(done.get(i, ())))
            for i, (name, _, _, layer) in enumerate(spec["steps"])
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
        return self._run(inputs, self.state_dict(keep_vars=True))

    def _run(self, values: dict[_Value, Any], weights: Mapping[str, Tensor]) -> Any:
        tensors = [*values.values(), *weights.values()]
        values |= {_Value("weight", name): tensor for name, tensor in weights.items()}
        values[_Value("device", "")] = tensors[0].device if tensors else torch.device("cpu")
        for index, step in enumerate(self._steps):
            try:
                result = step.call(*_filled(step.args, values), **_filled(step.kwargs, values))
            except Exception as err:
                raise CompressionError(
                    f"Step {index} of the network, {step.name} of layer {step.layer!r}, failed: "
                    f"{first_line(err)}. Give inputs like those that it was saved with."
                ) from err
            values[_Value("step", index)] = result
            for value in step.done:
                del values[value]
        return _filled(self._outputs, values)

    def check(self, example: Mapping[str, Any]) -> None:
        """Raise unless all steps fit: run them without numbers, on shapes alone."""
        inputs = {
            _Value("input", i): torch.empty(
                entry["shape"], dtype=getattr(torch, entry["dtype"]), device="meta"
            )
            for i, entry in enumerate(example["inputs"])
        }
        weights = {name: t.to("meta") for name, t in self.state_dict().items()}
        with torch.no_grad():
            found = described(self._run(inputs, weights))
        if found != example["outputs"]:
            raise CompressionError(f"It gives {found} where {example['outputs']} was saved")


def laid_out(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """Return a copy whose axes lie in memory in an order, the outermost first.

    Kernels sum in another order where a weight lies otherwise, and outputs are to be bit-equal.

    Example:
        >>> laid_out(torch.zeros(2, 3), [1, 0]).stride()
        (1, 2)
    """
    places = [order.index(axis) for axis in range(tensor.dim())]
    return tensor.permute(*order).clone(memory_format=torch.contiguous_format).permute(*places)


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


def load_spec(path: str | Path, *, device: str = "cpu") -> nn.Module:
    """Build the network of a file of `save_spec`, without the source code that made it.

    The file may come from anyone: it is data, read without unpickling, and may call the operations
    of `spec_operations` alone. It is run on shapes before it is returned. What a hostile
    file can still do is to ask for more memory or time than you have.

    Args:
        path: The file.
        device: Where to put the network.

    Returns:
        The network in its inference form; its outputs are bit-identical on the same machine.

    Raises:
        StateMismatchError: The file is missing, truncated, newer, of another kind, or does not
            describe a network of allowed operations.

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
    tensors, state = read_tensors(Path(path), device)
    spec = parse(json.dumps(state), KIND, VERSION, f"The header of {path}")
    try:
        network = GraphNetwork(spec, tensors)
        network.check(spec["example"])
    except Exception as err:  # the file is not trusted: it may be wrong in any way
        raise StateMismatchError(
            f"{path} does not describe a network that can be run: {first_line(err)}. It was "
            "changed or damaged; get it again from where it came from."
        ) from err
    return network.eval()


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
    if tag == "float":
        return float(value)
    word = getattr(torch, value)
    if not isinstance(word, WORDS[tag]):
        raise ValueError(f"{value!r} is no {tag} of torch")
    return word


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
