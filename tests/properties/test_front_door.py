"""What ``import pbcompress`` gives: a version, the names, and nothing heavy."""

import ast
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import pbcompress

ROOT = Path(__file__).parents[2]
FACE = ast.parse((ROOT / "pbcompress" / "__init__.py").read_text())
TYPED = {  # what type checkers are told
    alias.name: node.module
    for node in ast.walk(FACE)
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pbcompress.")
    for alias in node.names
    if alias.asname
}


def test_dir_lists_the_api_and_nothing_else() -> None:
    names = set(dir(pbcompress)) - {"__version__"}
    assert len(names) > 60
    assert names == set(pbcompress.__all__) == set(TYPED)
    assert not any(name.startswith("_") for name in names)


@pytest.mark.parametrize("name", sorted(TYPED))
def test_a_name_comes_from_the_module_that_type_checkers_are_told(name: str) -> None:
    assert getattr(pbcompress, name) is getattr(import_module(TYPED[name]), name)


def test_the_version_is_that_of_the_metadata() -> None:
    assert pbcompress.__version__ == version("pbcompress")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'kompress'"):
        _ = pbcompress.kompress  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "code",
    [
        "import pbcompress",
        "import pbcompress; dir(pbcompress); pbcompress.__version__",
        "from pbcompress.cli.main import main",
    ],
)
def test_the_door_opens_without_torch(code: str) -> None:
    heavy = "{'torch', 'numpy', 'onnx', 'onnxruntime', 'pydantic', 'safetensors', 'tqdm'}"
    check = f"import sys\n{code}\nprint(sorted({heavy} & set(sys.modules)))"
    command = [sys.executable, "-W", "error", "-c", check]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"
