"""A few inputs of a network and what torch computes from them, kept beside a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pbcompress.core.inputs import as_call, single_sample, tensors_of, to_device
from pbcompress.core.json_documents import check_kind, damage_named
from pbcompress.core.tensor_files import read_tensors, tensor_bytes
from pbcompress.errors import a_few

__all__ = ["SAMPLE_FILE", "Sample", "read_sample", "sample_bytes", "sample_of"]

KIND, VERSION = "pbcompress sample", 2  # with a SHA-256
SAMPLE_FILE = "sample.safetensors"
SAMPLES = 4
Sample = tuple[Sequence[Tensor], Sequence[Tensor]]  # inputs, outputs


def sample_of(network: nn.Module, example_inputs: object) -> Sample:
    """Return the first of some inputs, and what a network computes from them on the CPU.

    Args:
        network: In its inference form; it is moved to the CPU.
        example_inputs: Of one forward pass, the first axis the batch.

    Example:
        >>> inputs, outputs = sample_of(nn.Linear(3, 2), torch.zeros(64, 3))
        >>> inputs[0].shape, outputs[0].shape
        (torch.Size([4, 3]), torch.Size([4, 2]))
    """
    call = to_device(as_call(example_inputs), "cpu")
    args, kwargs = single_sample(call, network, SAMPLES)
    with torch.no_grad():
        outputs = network.cpu()(*args, **kwargs)
    return tensors_of((args, kwargs)), tensors_of(outputs)


def sample_bytes(sample: Sample) -> bytes:
    """Return the content of a file that `read_sample` reads."""
    inputs, outputs = sample
    tensors = {f"input.{i}": t for i, t in enumerate(inputs)}
    tensors |= {f"output.{i}": t for i, t in enumerate(outputs)}
    return tensor_bytes(tensors, {"kind": KIND, "version": VERSION})


def read_sample(path: Path) -> Sample:
    """Return the sample of a run.

    Raises:
        StateMismatchError: The file is missing, truncated or of another kind or version.
    """
    tensors, state = read_tensors(path)
    check_kind(state, KIND, VERSION, f"The header of {path}")
    with damage_named(str(path)):
        inputs, outputs = _side("input.", tensors), _side("output.", tensors)
        if len(inputs) + len(outputs) != len(tensors) or not inputs or not outputs:
            raise ValueError(f"it holds {a_few(list(tensors)) or 'nothing'}")
    return inputs, outputs


def _side(word: str, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    own = {int(name.removeprefix(word)): t for name, t in tensors.items() if name.startswith(word)}
    return [own[place] for place in range(len(own))]
