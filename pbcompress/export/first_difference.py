"""Where an exported file and its network part: the first layer whose output differs."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pbcompress.core.inputs import Call, tensors_of
from pbcompress.onnx_files.contents import write_with_outputs
from pbcompress.onnx_files.session import Session

__all__ = ["first_difference"]


def first_difference(
    network: nn.Module, path: Path, call: Call, tolerance: float, draft: Path
) -> str | None:
    """Return the first module without children whose output differs between torch and the file.

    The exporter notes the module of every node; a copy of the file returns what the last node of
    each module puts out, and both run once on the same inputs. A module that is folded into the
    next one, or called more than once, is passed over.

    Args:
        network: What was exported.
        path: The file.
        call: Inputs.
        tolerance: Difference, relative to the largest value of an output, that is rounding.
        draft: Where the copy may be written.

    Returns:
        The name of the module and its kind, or None where no difference can be pinned down.
    """
    leaves = {n: m for n, m in network.named_modules() if n and not any(m.children())}
    seen: dict[str, list[Tensor]] = {name: [] for name in leaves}

    def record(name: str, _: nn.Module, __: Any, output: Any) -> None:
        is_plain = isinstance(output, Tensor) and not output.is_nested
        seen[name] += [output.detach().clone()] if is_plain else []

    handles = [m.register_forward_hook(partial(record, name)) for name, m in leaves.items()]
    try:
        with torch.no_grad():
            network(*call.args, **call.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    values = write_with_outputs(path, draft, leaves)
    session = Session(draft, optimize=False)
    outputs = session.run(session.feeds(tensors_of(call)))
    found = dict(zip(session.output_names, outputs, strict=True))
    for name, value in values.items():
        if len(seen[name]) != 1:
            continue
        wanted, got = seen[name][0].double().numpy(), found[value].astype(np.float64)
        scale = max(float(np.abs(wanted).max(initial=0.0)), 1e-6)
        if wanted.shape == got.shape and not np.abs(wanted - got).max(initial=0.0) <= (
            tolerance * scale
        ):
            return f"{name} ({type(leaves[name]).__name__})"
    return None
