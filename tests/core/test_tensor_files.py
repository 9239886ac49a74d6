"""Files that are whole or not there at all."""

import errno
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pbcompress.core.tensor_files import read_tensors, write_bytes, write_tensors
from pbcompress.errors import CompressionError, StateMismatchError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def test_the_list_of_dtypes_is_whole() -> None:
    assert len(DTYPES) == 11


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 4), (1,), (3, 2)])
def test_every_dtype_and_shape_comes_back_bit_equal(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = (torch.randn(shape) * 9).to(dtype)
    write_tensors(tmp_path / "a", {"x.y": tensor}, {})
    back = read_tensors(tmp_path / "a")[0]["x.y"]
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


def test_views_and_shared_tensors_and_parameters_can_be_written(tmp_path: Path) -> None:
    whole = torch.nn.Parameter(torch.randn(4, 4))
    tensors: dict[str, Tensor] = {"all": whole, "same": whole, "column": whole[:, 1], "t": whole.T}
    write_tensors(tmp_path / "a", tensors, {})
    back, _ = read_tensors(tmp_path / "a")
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    assert not any(tensor.requires_grad for tensor in back.values())


def test_infinite_numbers_come_back(tmp_path: Path) -> None:
    tensor = torch.tensor([float("nan"), float("inf"), -0.0])
    write_tensors(tmp_path / "a", {"x": tensor}, {"best": float("-inf")})
    tensors, state = read_tensors(tmp_path / "a")
    assert tensors["x"].numpy().tobytes() == tensor.numpy().tobytes()
    assert state == {"best": float("-inf")}


def test_state_comes_back_as_json(tmp_path: Path) -> None:
    state = {"a": [1, 0.1, None, True], "ü": {"nested": "ö\n"}, "empty": {}}
    write_tensors(tmp_path / "a", {}, state)
    assert read_tensors(tmp_path / "a") == ({}, state)


def test_a_folder_is_made_and_a_file_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "file"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


class FailingFile:
    """A file on a disk that is full after the first half."""

    def __init__(self, file: Any, error: BaseException) -> None:
        self.file, self.error = file, error

    def __enter__(self) -> "FailingFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def fileno(self) -> int:
        number: int = self.file.fileno()
        return number

    def write(self, content: bytes) -> None:
        self.file.write(content[: len(content) // 2])
        raise self.error


def fail_writing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: FailingFile(opened(self, *a, **k), error)
    )


def test_a_full_disk_leaves_the_former_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"former")
    fail_writing(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(CompressionError, match=r"No space left on device\. Free some space"):
        write_bytes(path, b"newer")
    monkeypatch.undo()
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_the_former_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"former")
    fail_writing(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"newer")
    monkeypatch.undo()
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_rename_leaves_the_former_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = tmp_path / "file"
    write_bytes(path, b"former")
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(CompressionError, match=r"Permission denied"):
        write_bytes(path, b"newer")
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    blocker = tmp_path / "blocker"
    blocker.write_text("a file where a folder should be")
    with pytest.raises(CompressionError) as caught:
        write_bytes(blocker / "sub" / "file", b"x")
    assert "was to be written and could not be" in str(caught.value)
    assert "choose another folder" in str(caught.value)
    assert list(tmp_path.iterdir()) == [blocker]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateMismatchError, match=r"absent was to be read and there is no such"):
        read_tensors(tmp_path / "absent")


def whole_file(tmp_path: Path) -> bytes:
    write_tensors(tmp_path / "whole", {"x": torch.arange(100.0)}, {"a": 1})
    return (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_gets_its_own_sentence(tmp_path: Path, share: float) -> None:
    content, path = whole_file(tmp_path), tmp_path / "cut"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(StateMismatchError, match="truncated or of another kind"):
        read_tensors(path)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("unpickled",))

    path = tmp_path / "pickle"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(StateMismatchError, match="of another kind"):
        read_tensors(path)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "pt")
    np.savez(tmp_path / "npz", x=np.ones(2))
    (tmp_path / "json").write_text(json.dumps({"a": 1}))
    for name in ("pt", "npz.npz", "json"):
        with pytest.raises(StateMismatchError, match="of another kind"):
            read_tensors(tmp_path / name)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"state": "[1]"}])
def test_a_safetensors_file_of_others_gets_its_own_sentence(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "theirs", metadata=metadata)
    with pytest.raises(StateMismatchError, match="a safetensors file that pbcompress did not"):
        read_tensors(tmp_path / "theirs")


def test_a_safetensors_file_of_others_can_be_asked_for(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "theirs")
    tensors, state = read_tensors(tmp_path / "theirs", any_kind=True)
    assert torch.equal(tensors["x"], torch.ones(2))
    assert state == {}
