"""The recipe that ``pbcompress init`` writes."""

import json
from pathlib import Path

from pbcompress.core.tensor_files import write_bytes
from pbcompress.errors import CompressionError

__all__ = ["write_recipe"]

TEMPLATE = """\
# {model}, {params:,} parameters.
# Run it: pbcompress compress {name} --trust {package}
# See first what it would do: add --dry-run. The documentation has a page of all keys.

[model]
# a function that returns the network
build = {build}
# arguments = {{ width = 16 }}    # what it is called with
{weights}

[data]
# a function whose result has train, val and perhaps test batches
build = {data}
# arguments = {{ batch_size = 64 }}

{train}[compress]
target_params = {target}            # a share of the original, or a count
run_dir = {run_dir}   # the same command goes on there if it was stopped
# seed = 0
# control = true                # also train plain width to the end, to compare

# [compress.width]
# allocation = "balanced"       # or "accurate", "fast", "uniform"
# round_to = "auto"             # multiples that the runtime is fast with

[compress.recovery]
epochs = 20                     # of training after the cut

# [compress.recovery.optimizer]
# algorithm = "adamw"           # or "adam", "sgd"
# lr = "auto"                   # found by a short test

# [compress.dendrites]
# share = 0                     # no trial of dendrites: a few epochs less

# [export]
# quantize = "int8"             # also write a smaller file, if it is as good and not slower
"""
TRAIN = """\
[train]                         # leave this out if [model] has weights
epochs = 20

"""


def write_recipe(
    path: Path, *, model: str, data: str, params: int, target: float, weights: str | None
) -> None:
    """Write a recipe with a comment on every choice.

    Raises:
        CompressionError: The file is there already.
    """
    if path.exists():
        raise CompressionError(
            f"{path} is there already and was not changed. Give another file with --out."
        )
    no_weights = '# weights = "trained.safetensors" # or a .pt file that holds a state dict'
    text = TEMPLATE.format(
        model=" ".join(model.split()),
        name=path,
        package=model.partition(":")[0].partition(".")[0],
        params=params,
        build=json.dumps(model),
        data=json.dumps(data),
        target=target,
        run_dir=json.dumps(f"runs/{path.stem}"),
        weights=f"weights = {json.dumps(weights)}" if weights else no_weights,
        train="" if weights else TRAIN,
    )
    write_bytes(path, text.encode())
