"""What a stranger's network may ask of torch: nothing that ends the process, or takes it all."""

import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from pbcompress import StateMismatchError, load_spec, save_spec
from pbcompress.core.tensor_files import read_tensors, write_tensors
from pbcompress.export import spec_network
from pbcompress.export.spec_arguments import check_call
from pbcompress.export.spec_operations import ATEN, operation
from tests.support import spec_fuzz

META = torch.device("meta")


def in_children(first: int, last: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Make calls in processes of their own; return what came of them, and what killed one."""
    note, found, deaths = folder / "note", Counter[str](), list[str]()
    while first < last:
        command = [sys.executable, "-m", "tests.support.spec_fuzz", str(first), str(last), note]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found.update(json.loads(done.stdout))
            break
        seed = int(note.read_text())
        deaths.append(f"seed {seed}: {spec_fuzz.Calls(seed).form}, {done.stderr[-200:]}")
        first = seed + 1
    return found, deaths


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_no_allowed_call_ends_the_process(tmp_path: Path) -> None:
    found, deaths = in_children(0, 100_000, tmp_path)
    assert deaths == []
    assert sum(found.values()) == 100_000
    assert found["ran"] > 5_000
    assert found["ran on shapes"] > 1_000
    assert found["refused"] < 70_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a cheap process")
def test_a_call_of_every_operation_leaves_the_process_alive(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fork beside threads, which this one has not to join
        child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        spec_fuzz.main(0, len(ATEN), tmp_path / "note")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, (tmp_path / "note").read_text()


REFUSED = {
    "a number for a type": ("to.dtype", ["x", -1], {}),
    "a number for a memory format": ("clone.default", ["x"], {"memory_format": 0}),
    "a text for a tensor": ("relu.default", ["a"], {}),
    "a truth for a number": ("select.int", ["x", True, 0], {}),
    "another layout": ("zeros_like.default", ["x"], {"layout": torch.sparse_coo}),
    "another device": ("zeros_like.default", ["x"], {"device": torch.device("cpu")}),
    "memory of the device": ("zeros_like.default", ["x"], {"pin_memory": True}),
    "a strange type": ("zeros_like.default", ["x"], {"dtype": torch.quint8}),
    "an argument too many": ("relu.default", ["x", "x"], {}),
    "an argument twice": ("add.Tensor", ["x", "x"], {"other": 1}),
    "an argument that is not known": ("relu.default", ["x"], {"inplace": True}),
    "an argument too few": ("add.Tensor", ["x"], {}),
    "a stride of nothing": ("max_pool2d.default", ["x", [2, 2], [0, 0]], {}),
    "a size beyond everything": ("expand.default", ["x", [2**31, 2**31]], {}),
    "no device": ("full.default", [[2], 1], {}),
    "an endless count": ("arange.start_step", [0, 1, 0], {"device": META}),
    "many tensors": ("split.Tensor", ["long", 1], {}),
    "dropout": (
        "scaled_dot_product_attention.default", ["x", "x", "x", None, 0.5], {}
    ),
    "a word that is none": ("gelu.default", ["x"], {"approximate": "eval"}),
    "a number beyond 64 bits": ("add.Tensor", ["x", 2**64], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_an_argument_that_does_not_fit_the_schema_is_refused(name: str) -> None:
    assert len(REFUSED) == 20
    values = {"x": torch.ones(1, 1, 4, 4, device="meta"), "long": torch.ones(2**20, device="meta")}
    form, args, kwargs = REFUSED[name]
    with pytest.raises(ValueError, match=r" "):
        check_call(
            operation(f"aten.{form}"),
            [values.get(a, a) if isinstance(a, str) else a for a in args],
            kwargs,
            META,
        )


def spec_of(folder: Path, *steps: list[object], shape: tuple[int, ...] = (2, 4)) -> Path:
    """Write a network of some steps, beneath a digest that fits."""
    path = folder / "x.safetensors"
    save_spec(nn.Sequential(nn.Linear(4, 4)), path, torch.zeros(2, 4))
    tensors, spec = read_tensors(path)
    spec["steps"] = steps
    spec["outputs"] = {"step": len(steps) - 1}
    spec["example"]["inputs"][0]["shape"] = shape
    write_tensors(path, tensors, spec)
    return path


def test_memory_is_bounded_and_the_bound_can_be_raised(tmp_path: Path) -> None:
    path = spec_of(tmp_path, ["aten.full.default", [[2**16, 2**15], 1.0], {}, ""])
    with pytest.raises(StateMismatchError, match="bytes at once"):
        load_spec(path)
    with pytest.raises(StateMismatchError, match=r"where .* was saved"):  # its output is another
        load_spec(path, most_bytes=2**34)


def test_work_and_steps_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step: list[object] = ["aten.relu.default", [{"input": 0}], {}, ""]
    path = spec_of(tmp_path, *[step] * 100)
    monkeypatch.setattr(spec_network, "MOST_WORK", 500)
    with pytest.raises(StateMismatchError, match="numbers, of 500"):
        load_spec(path)
    monkeypatch.setattr(spec_network, "MOST_STEPS", 50)
    with pytest.raises(StateMismatchError, match="100 steps of 50"):
        load_spec(path)
    monkeypatch.undo()
    monkeypatch.setattr(spec_network, "MOST_SECONDS", -1.0)
    with pytest.raises(StateMismatchError, match="at most -1 seconds"):
        load_spec(path)


def test_numbers_from_sizes_are_checked_in_every_run(tmp_path: Path) -> None:
    """The stride is the batch size less one: nothing at a batch of one."""
    path = tmp_path / "x.safetensors"
    save_spec(nn.MaxPool2d(1), path, torch.zeros(2, 1, 4, 4))
    tensors, spec = read_tensors(path)
    spec["steps"] = [
        ["aten.sym_size.int", [{"input": 0}, 0], {}, ""],
        ["operator.sub", [{"step": 0}, 1], {}, ""],
        ["aten.max_pool2d.default", [{"input": 0}, [1, 1], [{"step": 1}, {"step": 1}]], {}, ""],
    ]
    spec["outputs"] = {"step": 2}
    write_tensors(path, tensors, spec)
    network = load_spec(path)
    assert network(torch.zeros(2, 1, 4, 4)).shape == (2, 1, 4, 4)
    with pytest.raises(Exception, match="stride is 0"):
        network(torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize("args", [[[1], 2**40], ["ab", 3], [{"input": 0}, 2]])
def test_python_computes_with_numbers_alone(args: list[object], tmp_path: Path) -> None:
    path = spec_of(tmp_path, ["operator.mul", args, {}, ""])
    with pytest.raises(StateMismatchError, match="it takes numbers"):
        load_spec(path)


def test_a_parameter_without_axes_is_saved(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.k = nn.Linear(3, 2), nn.Parameter(torch.tensor(2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) * self.k  # type: ignore[no-any-return]

    network = Scaled()
    save_spec(network, tmp_path / "x.safetensors", torch.ones(1, 3))
    again = load_spec(tmp_path / "x.safetensors")
    assert torch.equal(again(torch.ones(2, 3)), network(torch.ones(2, 3)))
