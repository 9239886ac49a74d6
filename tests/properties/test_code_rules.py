"""Rules of the code base, held over all modules."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import pbcompress

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pbcompress"
MODULES = {path.stem: ast.parse(path.read_text()) for path in PACKAGE.glob("*.py")}
INTEGRATIONS = {
    f"integrations.{path.stem}": ast.parse(path.read_text())
    for path in (PACKAGE / "integrations").glob("*.py")
}
# A module imports from the rows below its own, or from its own row where listed earlier there.
ROWS = [
    ["cli"],
    ["cli_measures"],
    ["cli_package"],
    ["cli_arguments"],
    ["zoo"],
    ["demo", "recipe"],
    ["pipeline"],
    ["result", "evidence"],
    ["packaging"],
    ["report", "comparing", "deploy", "benchmarking"],
    ["page", "comparison", "card"],
    ["checkpoint", "plan", "sample"],
    ["widths"],
    ["budgets", "shipping", "spec"],
    ["recovery", "export", "progress", "scoring", "program"],
    ["parity", "translation", "precision"],
    ["int8", "fakequant", "localization", "axes"],
    ["fuse"],
    ["trainer"],
    ["layout"],
    ["cycles", "fused", "runtime", "training", "quantization"],
    ["phase", "folding"],
    ["selection", "scores", "initialization", "replay"],
    ["observation"],
    ["patches"],
    ["calibration", "search", "proof", "dendrite", "shrinking"],
    ["signals"],
    ["nodes"],
    ["allocation", "latency", "forms", "correlation", "importance", "cuts", "pins", "explain"],
    ["preferences"],
    ["bounds"],
    ["costs", "statistics", "distillation", "scorecard", "optimizers", "admission", "standing"],
    ["charts", "race", "pictures", "inspection", "layerrows", "graphnet"],
    ["canvas"],
    [
        "engine",
        "grouping",
        "measure",
        "phases",
        "history",
        "task",
        "tensorfile",
        "tables",
        "onnxfile",
    ],
    ["tracing", "slicing", "families", "projections", "graphcost", "onnxstore"],
    ["movement", "attention"],
    ["operators"],
    ["tracer", "surgery", "geometry", "config", "deadline"],
    [
        "coupling",
        "sizes",
        "jsonfile",
        "choices",
        "versions",
        "positions",
        "blame",
        "counting",
        "intervals",
        "weights",
        "aten",
    ],
    ["errors"],
]
THIRD_PARTY = {
    "torch_pruning": {"slicing"},
    "fvcore": {"measure"},
    "safetensors": {"tensorfile"},
    "onnx": {"onnxfile", "onnxstore"},  # what is in a file, and the file
    "onnxruntime": {"runtime", "quantization"},  # sessions, and the tool
    "jinja2": {"report"},
    "matplotlib": {"canvas"},
    "tqdm": {"progress"},
    "lightning": {"engine", "integrations.lightning"},  # Fabric, and the Trainer
    "transformers": {"integrations.transformers"},
    "sklearn": {"demo"},
}
SHARED = {"torch", "numpy"}


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_every_module_has_a_row():
    assert sorted(m for row in ROWS for m in row) == sorted(set(MODULES) - {"__init__"})
    assert len(MODULES) >= 30


def test_nothing_imports_an_integration():
    assert len(INTEGRATIONS) == 4
    for tree in MODULES.values():
        assert not [m for m in imports(tree) if "integrations" in m]


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"__init__"}))
def test_imports_point_downwards(name):
    rank = {module: i for i, row in enumerate(ROWS) for module in row}
    own = [m.split(".")[1] for m in imports(MODULES[name]) if m.startswith("pbcompress.")]
    assert [m for m in own if rank[m] <= rank[name]] == []


def test_one_third_party_library_one_module():
    users = {}
    for name, tree in (MODULES | INTEGRATIONS).items():
        for module in imports(tree):
            top = module.split(".")[0]
            if top not in sys.stdlib_module_names and top not in SHARED | {"pbcompress", ""}:
                users.setdefault(top, set()).add(name)
    assert users == THIRD_PARTY


def test_the_zoo_and_the_package_do_not_know_each_other():
    files = [*(ROOT / "model_zoo").rglob("*.py"), *PACKAGE.glob("*.py")]
    assert len(files) > 40
    for path in files:
        other = "pbcompress" if "model_zoo" in path.parts else "model_zoo"
        assert other not in {m.split(".")[0] for m in imports(ast.parse(path.read_text()))}, path


def test_what_is_given_away_needs_numpy_and_onnxruntime_alone():
    tree = ast.parse((PACKAGE / "shipped" / "run.py").read_text())
    needed = {module.split(".")[0] for module in imports(tree)}
    assert needed - sys.stdlib_module_names == {"numpy", "onnxruntime"}


def test_import_is_lean():
    code = (
        "import sys, pbcompress\n"
        "heavy = {'onnx', 'onnxruntime', 'onnxscript', 'matplotlib', 'jinja2', 'sklearn'}\n"
        "heavy |= {'lightning', 'transformers', 'accelerate', 'tensorboard'}\n"
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
    "compare", "compress", "cycles", "export_onnx", "export_pt2", "fuse", "load", "load_spec",
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
