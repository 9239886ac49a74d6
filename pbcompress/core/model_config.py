"""The config that a network of Hugging Face carries: read, changed, and built from.

Nothing of that library is imported: a config is what ``model.config`` is and has ``to_dict``.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from pbcompress.core.randomness import seeded

__all__ = ["built", "config_of", "numbers_of", "with_numbers", "write_numbers_"]


def config_of(model: nn.Module) -> Any:
    """Return the config that a network is made from, None where it carries none."""
    config = getattr(model, "config", None)
    is_config = callable(getattr(config, "to_dict", None)) and hasattr(config, "model_type")
    return config if is_config else None


def numbers_of(config: Any) -> dict[str, int | None]:
    """Return the whole numbers from 2 that a config states, and what it leaves open, by path."""
    found: dict[str, int | None] = {}
    for path, part in _parts(config):
        for name, value in vars(part).items():
            if not name.startswith("_") and (value is None or (type(value) is int and value > 1)):
                found[f"{path}{name}"] = value
    return found


def with_numbers(config: Any, numbers: Mapping[str, int]) -> Any:
    """Return a copy of a config that states other numbers."""
    changed = copy.deepcopy(config)
    _set(changed, numbers)
    return changed


def write_numbers_(model: nn.Module, numbers: Mapping[str, int]) -> None:
    """Let the config of a network, and the copies that its modules hold, state other numbers."""
    root = config_of(model)
    if root is None or not numbers:
        return
    done = set()
    for module in model.modules():
        config = config_of(module)
        if config is None or id(config) in done:
            continue
        done.add(id(config))
        if type(config) is type(root):
            _set(config, numbers)
            done.update(id(part) for _, part in _parts(config))
        else:  # of a part of the network
            places = [path for path, part in _parts(root) if type(part) is type(config)]
            for path in places[:1]:
                own = {n.removeprefix(path): v for n, v in numbers.items() if n.startswith(path)}
                _set(config, own)


def built(model: nn.Module, config: Any) -> nn.Module:
    """Return a network of a model's class, in its dtype, whose parameters have no data.

    Raises:
        Exception: Whatever the class says to such a config.
    """
    with seeded("built"), _no_data():
        network: nn.Module = type(model)(config)
    return network.train(model.training)


@contextmanager
def _no_data() -> Iterator[None]:
    """Move every parameter to the meta device as soon as a module holds it; buffers are real."""
    register = nn.Module.register_parameter

    def empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = empty  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _parts(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a config and the configs in it, with the path that their names start with."""
    yield path, config
    for name, value in vars(config).items():
        if callable(getattr(value, "to_dict", None)) and hasattr(value, "model_type"):
            yield from _parts(value, f"{path}{name}.")


def _set(config: Any, numbers: Mapping[str, int]) -> None:
    for path, value in numbers.items():
        *inside, name = path.split(".")
        part = config
        for own in inside:
            part = getattr(part, own)
        setattr(part, name, value)
