"""What the commands share: networks, inputs and data that are named on the command line."""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pbcompress.errors import CompressionError, first_line

__all__ = ["DATA_HELP", "MODEL_HELP", "add_inputs", "data_named", "inputs_of", "network_named"]

MODEL_HELP = "package.module:function that builds the network, importable from this folder"
DATA_HELP = "package.module:function that makes data with test or val batches, for the accuracy"
INPUT_HELP = "shape of one input with the batch first, e.g. 1,3,32,32; repeat it for several inputs"


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


def inputs_of(arguments: argparse.Namespace) -> tuple[torch.Tensor, ...]:
    """Return random values of the shapes of ``--input``, always the same."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator) for shape in arguments.input)


def network_named(name: str) -> nn.Module | Path:
    """Return the path of an ONNX file, or a network in eval mode."""
    if name.endswith(".onnx"):
        return Path(name)
    module = _made(name)
    if not isinstance(module, nn.Module):
        raise CompressionError(f"{name} was to build a network; it made a {type(module).__name__}.")
    return module.eval()


def data_named(name: str | None) -> Any:
    """Return what a function makes; None where none is named."""
    return None if name is None else _made(name)


def _made(name: str) -> Any:
    from pbcompress.recipes.recipe import resolve

    try:
        return resolve(name)()
    except CompressionError:
        raise
    except Exception as err:
        raise CompressionError(
            f"{name} was called without arguments and raised {type(err).__name__}: "
            f"{first_line(err)}. Name a function that needs none."
        ) from err
