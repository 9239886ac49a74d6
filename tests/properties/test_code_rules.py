"""Rules of the code base, held over all modules."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import pbcompress

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pbcompress"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
    if "shipped" not in path.parts
}
FOLDERS = {name.removesuffix(".__init__") for name in MODULES if name.endswith(".__init__")}
THIRD_PARTY = {
    "torch_pruning": {"pruning.slicing"},
    "fvcore": {"costs.measured"},
    "annotated_types": {"core.field_types"},
    "pydantic": {"core.records"},
    "safetensors": {"core.tensor_files"},
    "onnx": {"onnx_files.contents", "onnx_files.store"},  # what is in a file, and the file
    # sessions here and apart, and the tool
    "onnxruntime": {"onnx_files.session", "onnx_files.worker", "quantization.converter"},
    "jinja2": {"report.writing"},
    "matplotlib": {"core.drawing"},
    "tqdm": {"training.progress"},
    "lightning": {"training.engine", "integrations.lightning"},  # Fabric, and the Trainer
    "ray": {"frontiers.ray_cluster"},
    "transformers": {"integrations.transformers"},
    "sklearn": {"recipes.demo"},
}
SHARED = {"torch", "numpy"}


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_every_folder_says_what_it_is_and_holds_no_code_in_its_face():
    assert len(FOLDERS) == 21
    for folder in FOLDERS:
        tree = MODULES[f"{folder}.__init__"]
        assert len(tree.body) == 1, folder
        assert 3 <= ast.get_docstring(tree).count(".") <= 6, folder


def test_no_public_name_is_the_name_of_a_submodule():
    submodules = {part for name in MODULES for part in name.split(".")} - {"__init__"}
    imported = [n for n in ast.walk(MODULES["__init__"]) if isinstance(n, ast.ImportFrom)]
    public = {alias.asname for node in imported for alias in node.names} - {None}
    assert len(submodules) > 120
    assert len(public) > 50
    assert submodules & public == set()


def test_one_third_party_library_one_module():
    users = {}
    for name, tree in MODULES.items():
        for module in imports(tree):
            top = module.split(".")[0]
            if top not in sys.stdlib_module_names and top not in SHARED | {"pbcompress", ""}:
                users.setdefault(top, set()).add(name)
    assert users == THIRD_PARTY


def test_the_zoo_and_the_package_do_not_know_each_other():
    files = [*(ROOT / "model_zoo").rglob("*.py"), *PACKAGE.rglob("*.py")]
    assert len(files) > 140
    for path in files:
        other = "pbcompress" if "model_zoo" in path.parts else "model_zoo"
        assert other not in {m.split(".")[0] for m in imports(ast.parse(path.read_text()))}, path


def test_what_is_given_away_needs_numpy_and_onnxruntime_alone():
    tree = ast.parse((PACKAGE / "packaging" / "shipped" / "run.py").read_text())
    needed = {module.split(".")[0] for module in imports(tree)}
    assert needed - sys.stdlib_module_names == {"numpy", "onnxruntime"}


def test_import_is_lean():
    code = (
        "import sys, pbcompress\n"
        "heavy = {'onnx', 'onnxruntime', 'onnxscript', 'matplotlib', 'jinja2', 'sklearn'}\n"
        "heavy |= {'ray', 'lightning', 'transformers', 'accelerate', 'tensorboard', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_the_library_never_prints():
    for name, tree in MODULES.items():
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        prints = [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
        assert name.startswith("cli") or not prints, name


CONTRACT = {
    "Budget", "CompressConfig", "CompressionError", "Data", "DendriteConfig", "DendriteLayer",
    "DivergedError", "ExportMismatchError", "ExportReport", "ModelCost", "StateMismatchError",
    "TargetUnreachableError", "Task", "UnsupportedLayerError", "WidthPlan", "attach_dendrites_",
    "compare", "compress", "cycles", "export_onnx", "export_pt2", "frontier", "fuse", "load",
    "load_spec",
    "measure", "package", "plan_widths", "recover_", "reestimate_batchnorm_", "save_spec",
    "shrink", "shrink_",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_every_name_of_the_contract_is_there_and_documented(name):
    thing = getattr(pbcompress, name)
    assert len(inspect.getdoc(thing) or "") > 30
    if inspect.isfunction(thing):
        hints = inspect.signature(thing)
        assert hints.return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize(
    "name", sorted(n for n in CONTRACT if inspect.isfunction(getattr(pbcompress, n)))
)
def test_every_function_of_the_contract_has_an_example_and_its_arguments_documented(name):
    function = getattr(pbcompress, name)
    doc = inspect.getdoc(function)
    assert ">>>" in doc
    for parameter in inspect.signature(function).parameters:
        assert f"{parameter}:" in doc or f"**{parameter}:" in doc, parameter


def test_no_file_speaks_of_a_machine():
    tracked = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    files = [ROOT / name for name in tracked.stdout.split()] or list(ROOT.rglob("*.py"))
    texts = [
        path
        for path in files
        if path.suffix in {".py", ".md", ".toml", ".jinja", ""} and path.is_file()
    ]
    assert len(texts) > 40
    needles = ("/" + "root/", "/" + "work/", "/" + "home/")
    for path in texts:
        text = path.read_text(errors="ignore")
        assert not any(needle in text for needle in needles), path
