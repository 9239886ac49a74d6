"""What the commands share: networks, inputs and data that are named on the command line."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbcompress.errors import CompressionError, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "DATA_HELP",
    "MODEL_HELP",
    "ZOO_FETCH",
    "Answer",
    "add_command",
    "add_inputs",
    "add_trust",
    "code_of_this_folder",
    "data_named",
    "inputs_of",
    "network_named",
    "number",
    "untrained",
]

MODEL_HELP = "package.module:function that builds the network, importable from this folder"
DATA_HELP = "package.module:function that makes data with test or val batches, for the accuracy"
CODE = ("model", "before", "after", "control", "data", "task", "by")  # options that name it
ZOO_FETCH = "model_zoo.datasets.fetch:fetch"
INPUT_HELP = "shape of one input with the batch first, e.g. 1,3,32,32; repeat it for several inputs"


@dataclass(frozen=True)
class Answer:
    """What a command found.

    Attributes:
        text: For people.
        facts: Makes the same as plain data, for ``--json``.
    """

    text: str
    facts: Callable[[], Any]


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], Answer],
    *,
    forms: Mapping[str, str] | None = None,
    **texts: str,
) -> argparse.ArgumentParser:
    """Add a command, with the options that all of them have.

    Args:
        commands: Of the parser.
        name: Of the command.
        run: Carries it out.
        forms: What else the answer can be printed as, instead of JSON: help by option.
        texts: ``help`` and ``description``.
    """
    parser: argparse.ArgumentParser = commands.add_parser(name, **texts)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON and nothing else")
    for option, text in (forms or {}).items():
        form.add_argument(option, action="store_true", help=text)
    parser.set_defaults(run=run)
    return parser


def add_inputs(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add ``--input``."""
    parser.add_argument(
        "--input",
        action="append",
        type=_shape,
        required=required,
        default=None,
        metavar="SHAPE",
        help=INPUT_HELP,
    )


def _shape(text: str) -> tuple[int, ...]:
    shape = tuple(int(size) for size in text.split(","))
    if not shape or min(shape) < 1:
        raise ValueError(text)
    return shape


def number(text: str) -> int | float:
    """Return a count or a share."""
    return int(text) if text.isdigit() else float(text)


def inputs_of(arguments: argparse.Namespace) -> "tuple[Tensor, ...]":
    """Return random values of the shapes of ``--input``, always the same."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator) for shape in arguments.input)


def network_named(name: str) -> "nn.Module | Path":
    """Return the path of an ONNX file, or a network in eval mode."""
    from torch import nn

    if name.endswith(".onnx"):
        return Path(name)
    module = _made(name)
    if not isinstance(module, nn.Module):
        raise CompressionError(f"{name} was to build a network; it made a {type(module).__name__}.")
    return module.eval()


def untrained(name: str, network: "nn.Module | Path") -> str | None:
    """Say that the weights of a network are random: another call gives others."""
    import torch

    if isinstance(network, Path):
        return None
    again = network_named(name)
    assert not isinstance(again, Path)
    others = again.state_dict()
    for key, value in network.state_dict().items():
        other = others.get(key)
        if other is None or not torch.equal(value, other):
            return (
                f"{name} gives other weights at each call, so they are random and not trained: "
                "its outputs and its accuracy say nothing. Let it load its weights."
            )
    return None


def data_named(name: str | None) -> Any:
    """Return what a function makes; None where none is named."""
    return None if name is None else _made(name)


@contextmanager
def code_of_this_folder(arguments: argparse.Namespace) -> Iterator[None]:
    """Let a command that names code import it from the current folder, after everything else."""
    here = str(Path.cwd())
    if not _names_code(arguments) or here in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(here)


def _names_code(arguments: argparse.Namespace) -> bool:
    """Tell whether the user named code; a recipe does not, unless its code is trusted or ours."""
    given = vars(arguments)
    if "trust" in given:
        return bool(given["trust"]) or Path.cwd().resolve() == _checkout()
    if given.get("by") == ZOO_FETCH:  # nobody named it
        return Path.cwd().resolve() == _checkout()
    texts = [value for name in CODE if isinstance(value := given.get(name), str)]
    return any(":" in text and not text.endswith(".onnx") for text in texts)


def _checkout() -> Path:
    from pbcompress.recipes.builders import CHECKOUT

    return CHECKOUT


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust``."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="a package or module whose functions the recipe may call; repeat it. It then runs "
        "as you: name only code that you would run",
    )


def _made(name: str) -> Any:
    from pbcompress.recipes.builders import resolve

    try:
        return resolve(name)()
    except CompressionError:
        raise
    except Exception as err:
        raise CompressionError(
            f"{name} was called without arguments and raised {type(err).__name__}: "
            f"{first_line(err)}. Name a function that needs none."
        ) from err
