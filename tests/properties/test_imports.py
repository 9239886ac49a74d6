"""What an import leaves as it was: the path, the environment, warnings, signals, random states."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import json, os, random, signal, sys, warnings
import numpy, torch
for name in {first!r}:  # what others do when they are imported is theirs
    try:
        __import__(name)
    except ImportError:
        pass
def state():
    return {{
        "path": list(sys.path),
        "environment": dict(os.environ),
        "warnings": [repr(entry) for entry in warnings.filters],
        "signals": [repr(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)],
        "random": repr(random.getstate())[:200],
        "numpy": repr(numpy.random.get_state()[1][:5]),
        "torch": torch.get_rng_state()[:64].tolist(),
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()),
        "hooks": [repr(sys.excepthook), repr(sys.displayhook)],
        "folder": os.getcwd(),
    }}
before = state()
{code}
after = state()
print(json.dumps([k for k in before if before[k] != after[k]]))
"""
MODULES = """
import importlib, pkgutil, pbcompress
for name in pbcompress.__all__ if hasattr(pbcompress, "__all__") else dir(pbcompress):
    getattr(pbcompress, name, None)
for found in pkgutil.walk_packages(pbcompress.__path__, "pbcompress."):
    if "__main__" not in found.name and "shipped" not in found.name:
        importlib.import_module(found.name)
"""


OTHERS = (
    "importlib.resources",
    "lightning.fabric",
    "lightning.pytorch",
    "matplotlib.pyplot",
    "onnx",
    "onnxruntime.quantization",
    "onnxruntime.transformers.onnx_model",
    "onnxscript",
    "pydantic",
    "sklearn.datasets",
    "torch.onnx",
    "torch_pruning",
    "tqdm",
    "transformers.trainer",
)


def changes(code: str, first: Sequence[str] = ()) -> list[str]:
    command = [sys.executable, "-c", CODE.format(code=code, first=list(first))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_an_import_of_pbcompress_changes_nothing_of_the_process() -> None:
    assert changes("import pbcompress") == []


@pytest.mark.slow
def test_an_import_of_all_modules_changes_nothing_of_the_process() -> None:
    assert changes(MODULES, OTHERS) == []
