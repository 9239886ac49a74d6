"""A package is whole, is right where it arrives, and is written in one piece or not at all."""

import hashlib
import io
import json
import os
import re
import resource
import runpy
import shutil
import subprocess
import sys
import zipfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from onnx import TensorProto, helper
from torch import nn

from pbcompress import (
    CardConfig,
    CompressConfig,
    CompressionError,
    Data,
    ExportMismatchError,
    StateMismatchError,
    compress,
    export_onnx,
    package,
)
from pbcompress.cli.main import main
from pbcompress.onnx_files import apart
from pbcompress.onnx_files.contents import metadata_of
from pbcompress.onnx_files.store import save, save_again
from pbcompress.packaging import folder as packaging
from pbcompress.report.headline import headline
from pbcompress.runs.sample import read_sample
from tests.support.changed_json import rewrite
from tests.support.hostile_files import doubling, endless, model
from tests.support.hostile_files import save as save_file

ROOT = Path(__file__).parents[2]
FILES = ["README.md", "SHA256SUMS", "config.json", "model.onnx", "run.mjs", "run.py", "sample.npz"]
CARD = CardConfig(
    license="apache-2.0",
    task="tabular-classification",
    datasets=("someone/points",),
    tags=("tiny",),
    classes=("left", "right", "both: of them"),
    preprocessing="Divide by 8.",
    intended_use="To be tested.\n\nNothing else.",
)

# The runner in a process that has neither torch nor pbcompress.
ALONE = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "pbcompress", "onnx"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def batches(count):
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, 8, generator=generator)
    return [(x, x[:, :3].argmax(1))]


def small_run(folder):
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    config = CompressConfig.from_dict({"recovery": {"epochs": 2}})
    data = Data(train=batches(200), val=batches(100), test=batches(150))
    return compress(net, 0.5, data=data, config=config, run_dir=folder, progress=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    torch.manual_seed(0)
    return small_run(folder / "run"), folder / "run"


@pytest.fixture(scope="module")
def packed(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "points"
    return package(finished[1], path, CARD), path


@pytest.fixture
def copied(packed, tmp_path):
    """A package as it arrives somewhere else."""
    return Path(shutil.copytree(packed[1], tmp_path / "arrived"))


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(finished[1], tmp_path / "run"))


def forget(run):
    """Make a run one that exported nothing, and so does not know the checksum of its model."""
    rewrite(run / "state.json", lambda state: state["facts"].update(deployment=None))


def run_alone(folder, *words):
    command = [sys.executable, "-c", ALONE, str(folder / "run.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# --- what is in it --------------------------------------------------------------------------------


def test_it_holds_what_it_says(packed):
    found, path = packed
    assert sorted(p.name for p in path.iterdir()) == FILES == sorted(found.files)
    assert found.files == {p.name: p.stat().st_size for p in path.iterdir()}
    lines = (path / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert sorted(sums) == [name for name in FILES if name != "SHA256SUMS"]
    for name, digest in sums.items():
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == digest
    assert (path / "run.py").read_text().count("\n") < 150


def test_no_file_speaks_of_the_machine_that_made_it(packed):
    for path in packed[1].iterdir():
        content = path.read_bytes()
        for word in (str(packed[1].parent), str(ROOT), str(Path.home()) + os.sep):
            assert word.encode() not in content, (path, word)


def test_the_same_run_gives_the_same_bytes(finished, packed, tmp_path):
    package(finished[1], tmp_path / "points", CARD)
    for name in FILES:
        assert (tmp_path / "points" / name).read_bytes() == (packed[1] / name).read_bytes(), name


def test_the_sample_is_what_torch_computes(finished, packed):
    result, path = finished[0], packed[1]
    sample = np.load(path / "sample.npz", allow_pickle=False)
    assert sorted(sample) == ["input_0", "output_0"]
    with torch.no_grad():
        wanted = result.frozen()(torch.from_numpy(sample["input_0"]))
    assert np.array_equal(sample["output_0"], wanted.numpy())
    inputs, outputs = read_sample(finished[1] / "sample.safetensors")
    assert len(inputs[0]) == len(outputs[0]) == 4


def test_the_configuration_describes_inputs_outputs_and_models(packed):
    found, path = packed
    config = json.loads((path / "config.json").read_text())
    assert [(e["type"], e["shape"]) for e in config["inputs"]] == [("float32", ["batch", 8])]
    assert [(e["type"], e["shape"]) for e in config["outputs"]] == [("float32", ["batch", 3])]
    assert config["classes"] == list(CARD.classes)
    assert config["preprocessing"] == "Divide by 8."
    assert config["models"] == found.models
    assert config["models"]["model.onnx"]["max_difference"] < 1e-5
    assert config["models"]["model.onnx"]["same_top1"] == 1.0


# --- the card -------------------------------------------------------------------------------------


def test_the_hub_reads_the_card(finished, packed):
    facts = finished[0].facts()
    card = ModelCard.load(packed[1] / "README.md")
    data = card.data
    assert (data.license, data.library_name) == ("apache-2.0", "onnx")
    assert data.pipeline_tag == "tabular-classification"
    assert data.datasets == ["someone/points"]
    assert {"onnx", "pbcompress", "tiny"} <= set(data.tags)
    assert data.metrics == ["accuracy"]
    (entry,) = data.eval_results
    assert entry.task_type == "tabular-classification"
    assert (entry.dataset_name, entry.dataset_split) == ("someone/points", "test")
    assert entry.metric_value == facts.after.score.test
    assert "n = 150, 95 % interval" in entry.metric_name
    assert yaml.safe_load(card.content.split("---")[1])["model-index"][0]["name"] == "points"


def test_the_card_says_what_was_measured(finished, packed):
    text = (packed[1] / "README.md").read_text()
    facts = finished[0].facts()
    assert "$" not in text
    for word in (
        "\n\n".join(headline(facts)),
        f"accuracy {facts.after.score.test:.4f} on 150 samples of the test split",
        f"accuracy {facts.after.score.val:.4f} on 100 samples of the validation split",
        "left, right, both: of them",
        "Divide by 8.",
        "Nothing else.",
        f"run beside torch {facts.shipped.proof.checks} times",
        "Not measured. Training and validation",
        "4 inputs in `sample.npz`",
        f"| `model.onnx` | {packed[0].files['model.onnx']:,} |",
    ):
        assert word in text, word


def test_what_is_not_known_is_said_and_left_out_of_the_head(tmp_path):
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    compress(net, 0.5, example_inputs=torch.zeros(1, 8), run_dir=tmp_path / "run")
    package(tmp_path / "run")
    text = (tmp_path / "run" / "package" / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert sorted(head) == ["library_name", "tags"]
    assert text.partition("\n---\n")[2].strip().startswith("# run\n")
    for sentence in (
        "Their names are not known", "Not known to the run", "Not stated.", "was shrunk and not",
    ):  # fmt: skip
        assert sentence in text, sentence


@pytest.mark.parametrize("value", [0.5, 1e-7, 1e22, 3.0, -2.5e-9])
def test_numbers_of_the_head_are_numbers_of_yaml(value):
    from pbcompress.packaging.model_card import _yaml

    assert yaml.safe_load("\n".join(_yaml({"a": [{"b": value}]}))) == {"a": [{"b": value}]}


@pytest.mark.parametrize("text", ["", "a b", "mit\nevil: 1", "é", "-mit", '"mit"'])
@pytest.mark.parametrize("field", ["license", "task", "datasets", "tags"])
def test_words_of_the_head_are_words(field, text):
    with pytest.raises(CompressionError, match="such as"):
        CardConfig(**{field: text if field in ("license", "task") else (text,)})


# --- the runners ----------------------------------------------------------------------------------


def test_the_runner_needs_neither_torch_nor_pbcompress(copied):
    sample = np.load(copied / "sample.npz")
    np.save(copied.parent / "x.npy", sample["input_0"].astype(np.float64))

    checked = run_alone(copied, "--check")
    given = run_alone(copied, copied.parent / "x.npy")
    drawn = run_alone(copied)

    assert (checked.returncode, checked.stderr) == (0, "")
    assert "model.onnx: the files are whole, and it computes what it should." in checked.stdout
    names = [CARD.classes[i] for i in sample["output_0"].argmax(1)]
    assert given.stdout.splitlines()[-1] == f"top-1: {' '.join(names)}"
    assert "shape (4, 3)" in given.stdout
    assert "shape (1, 3)" in drawn.stdout
    assert sorted(p.name for p in copied.iterdir()) == FILES


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("SHA256SUMS", "run.py")])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_the_check_names_a_file_that_is_not_whole(name, damage, copied):
    path = copied / name
    content = path.read_bytes()
    path.unlink()
    if damage == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = run_alone(copied, "--check")
    assert found.returncode == 1
    assert f"'{name}' is missing or is not what was shipped" in found.stderr


def sign(folder, *more):
    """Make the checksums right again, as whoever changes a package would."""
    names = [name for name in FILES if name != "SHA256SUMS"] + list(more)
    sums = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "SHA256SUMS").write_text("".join(sums))


@pytest.mark.parametrize("damage", ["another number", "another shape", "not a number"])
def test_the_check_fails_where_a_model_computes_something_else(damage, copied):
    sample = dict(np.load(copied / "sample.npz"))
    if damage == "another number":
        sample["output_0"][1, 2] += 1e-3 * np.abs(sample["output_0"]).max()
    elif damage == "another shape":
        sample["output_0"] = sample["output_0"][:1]
    else:
        sample["output_0"][0, 0] = np.nan
    np.savez(copied / "sample.npz", **sample)
    sign(copied)
    found = run_alone(copied, "--check")
    assert found.returncode == 1
    what = "not finite" if damage == "not a number" else "Output 0 of model.onnx is not that of"
    assert what in found.stderr


def tampered(change):
    """Change the configuration and make the sums right again."""

    def harm(folder):
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        sign(folder)

    return harm


def with_infinity(folder):
    sample = dict(np.load(folder / "sample.npz"))
    sample["output_0"].flat[0] = np.inf
    np.savez(folder / "sample.npz", **sample)
    sign(folder)


def with_more_than_it_holds(folder):
    """A sample of little that claims to be much."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    )
    with zipfile.ZipFile(folder / "sample.npz", "w") as archive:
        archive.writestr("input_0.npy", buffer.getvalue())
    sign(folder)


def squeezed(folder):
    sample = dict(np.load(folder / "sample.npz"))
    np.savez_compressed(folder / "sample.npz", **sample)
    sign(folder)


def linked(folder):
    shutil.copy(folder / "model.onnx", folder.parent / "elsewhere.onnx")
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere.onnx")


HARMS = {
    "no sums": lambda folder: (folder / "SHA256SUMS").write_text(""),
    "a file beside them": lambda folder: (folder / "more.bin").write_bytes(b"x"),
    "a folder beside them": lambda folder: (folder / "more").mkdir(),
    "a link": linked,
    "sums without a file": lambda folder: (folder / "SHA256SUMS").unlink(),
    "sums of a path": lambda folder: (folder / "SHA256SUMS").write_text(
        (folder / "SHA256SUMS").read_text() + f"{'0' * 64}  ../x\n"
    ),
    "no models": tampered(lambda config: config.update(models={})),
    "a model elsewhere": tampered(
        lambda config: config["models"].update({"../elsewhere.onnx": {"tolerance": 1e-4}})
    ),
    "a model that is not named": lambda folder: (
        shutil.copy(folder / "model.onnx", folder / "other.onnx"),
        sign(folder, "other.onnx"),
    ),
    "no outputs": tampered(lambda config: config.update(outputs=[])),
    "any tolerance": tampered(lambda config: config["models"]["model.onnx"].update(tolerance=1e9)),
    "a tolerance that is none": tampered(
        lambda config: config["models"]["model.onnx"].update(tolerance=float("nan"))
    ),
    "a configuration of another form": tampered(lambda config: config.pop("inputs")),
    "deep nesting": lambda folder: (
        (folder / "config.json").write_text("[" * 100_000),
        sign(folder),
    ),
    "an infinite sample": with_infinity,
    "a sample that claims much": with_more_than_it_holds,
    "a sample that is packed": squeezed,
    "a sample that is none": lambda folder: (
        (folder / "sample.npz").write_bytes(b"x"),
        sign(folder),
    ),
    "a model that is none": lambda folder: (
        (folder / "model.onnx").write_bytes(b"x"),
        sign(folder),
    ),
}


def test_the_check_refuses_every_harm_in_a_line(packed, tmp_path):
    """In one process: each harm by a call of the runner's check."""
    assert len(HARMS) == 19
    for number, (name, harm) in enumerate(HARMS.items()):
        folder = Path(shutil.copytree(packed[1], tmp_path / str(number)))
        harm(folder)
        code, out, err = run_here(folder, "--check")
        assert code == 1, name
        assert len(err.strip().splitlines()) == 1, (name, err)
        assert len(err) < 500, name
        assert "proves" not in out, name


def with_limits(folder, seconds, memory):
    """Give a package a network that doubles its input without end, and its runner small bounds."""
    ends = onnx.load(folder / "model.onnx").graph
    save_file(doubling(ends.input[0].name, ends.output[0].name, width=8), folder / "model.onnx")
    code = (folder / "run.py").read_text()
    changes = {"MOST_SECONDS = 300.0": f"MOST_SECONDS = {seconds}"}
    changes |= {"MOST_MEMORY = 2**33": f"MOST_MEMORY = {memory}"}
    for former, new in changes.items():
        assert former in code
        code = code.replace(former, new)
    (folder / "run.py").write_text(code)
    sign(folder)


def with_model(run, made):
    """Put another network into a run, with a state that names it, as a stranger would."""
    proto = onnx.load(save_file(made, run / "made.onnx"))
    helper.set_model_props(proto, metadata_of(run / "model.onnx"))
    save(proto, run / "model.onnx")
    digest = hashlib.sha256((run / "model.onnx").read_bytes()).hexdigest()
    rewrite(
        run / "state.json", lambda s: s["facts"]["deployment"]["file"].update(sha256=digest)
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux")
def test_a_run_of_a_stranger_is_packaged_within_bounds_on_memory(run, monkeypatch, capsys):
    monkeypatch.setattr(apart, "MOST_BYTES", 2**28)
    ends = onnx.load(run / "model.onnx").graph
    with_model(run, doubling(ends.input[0].name, ends.output[0].name, width=8))
    with pytest.raises(StateMismatchError, match=r"does not run .*([Aa]lloc|memory)"):
        package(run)
    assert main(["package", str(run)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (run / "package").exists()


def test_a_run_of_a_stranger_is_packaged_within_bounds_on_time(run, monkeypatch):
    monkeypatch.setattr(apart, "MOST_SECONDS", 1.0)
    with_model(run, endless(width=8))
    with pytest.raises(StateMismatchError, match="at most 1 seconds"):
        package(run)


def test_a_package_takes_no_file_that_its_model_does_not_name(run, tmp_path):
    (tmp_path / "secret").write_text("mine")
    (run / "model.onnx.data").symlink_to(tmp_path / "secret")
    (run / "model.onnx.2.data").write_text("mine")
    assert sorted(package(run).files) == FILES


@pytest.mark.parametrize("path", ["a\0b", "loop"])
def test_what_is_no_path_of_a_folder_is_named(path, run, tmp_path, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for words in ([str(tmp_path / path)], [str(run), str(tmp_path / path)]):
        assert main(["package", *words]) == 1
        assert capsys.readouterr().err.count("\n") == 1


def test_the_current_folder_may_become_a_package(run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CompressionError, match="is there already"):
        package(run, ".")


@pytest.mark.parametrize("outputs", [["y"], ["y", "z"]], ids=["another shape", "two outputs"])
def test_a_model_that_does_not_fit_the_sample_is_named(outputs, run):
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 8]) for n in ["x", *outputs]]
    nodes = [helper.make_node("Relu", ["x"], [name]) for name in outputs]
    with_model(run, model(helper.make_graph(nodes, "g", ends[:1], ends[1:])))
    with pytest.raises(StateMismatchError, match=r"model\.onnx does not run on the sample"):
        package(run)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux")
def test_the_check_bounds_the_memory_of_a_model(copied):
    with_limits(copied, 300.0, 2**28)
    found = run_alone(copied, "--check")
    assert (found.returncode, found.stderr.count("\n")) == (1, 1)
    assert re.search("[Aa]lloc|memory", found.stderr)


def test_the_check_bounds_the_time_of_a_model(copied):
    with_limits(copied, 0.01, 2**28)
    found = run_alone(copied, "--check")
    assert (found.returncode, found.stderr.count("\n")) == (1, 1)
    assert "takes too long" in found.stderr


def run_here(folder, *words):
    """Run a runner in this process, which then has its limits no longer."""
    out, err, before = io.StringIO(), io.StringIO(), (sys.argv, sys.path[:])
    space = resource.getrlimit(resource.RLIMIT_AS)
    sys.argv = [str(folder / "run.py"), *words]
    try:
        with redirect_stdout(out):
            runpy.run_path(str(folder / "run.py"), run_name="__main__")
        code = 0
    except SystemExit as end:
        err.write(str(end.code or ""))
        code = 0 if not end.code else 1
    finally:
        sys.argv, sys.path[:] = before
        resource.setrlimit(resource.RLIMIT_AS, space)
    return code, out.getvalue(), err.getvalue()


def test_what_lies_beside_the_runner_is_no_module(copied):
    for name in ("numpy", "onnxruntime", "json", "pathlib", "argparse", "typing"):
        (copied / f"{name}.py").write_text("raise SystemExit('code of the folder ran')\n")
    command = [sys.executable, "run.py", "--check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=copied)
    assert found.returncode == 1
    assert "'argparse.py' is not one of the files that SHA256SUMS names" in found.stderr


def npm_folder():
    """A folder with onnxruntime-web beside packages that are put into it, or why there is none."""
    if not (shutil.which("node") and shutil.which("npm")):
        return None, "node and npm are not installed"
    folder = ROOT / "build" / "node"
    if not (folder / "node_modules" / "onnxruntime-web").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "onnxruntime-web@1.30.0"]
        done = subprocess.run([*command, "--prefix", str(folder)], capture_output=True, check=False)
        if done.returncode:
            return None, "npm could not install onnxruntime-web"
    return folder, ""


@pytest.mark.slow
def test_the_javascript_runner_computes_the_same(finished, copied):
    folder, reason = npm_folder()
    if folder is None:
        pytest.skip(reason)
    arrived = folder / "package"
    shutil.rmtree(arrived, ignore_errors=True)
    shutil.copytree(copied, arrived)
    sample = np.load(arrived / "sample.npz")
    np.save(folder / "x.npy", sample["input_0"].astype(np.float64))

    def node(*words):
        command = ["node", str(arrived / "run.mjs"), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    checked, given, drawn = node("--check"), node(folder / "x.npy"), node()
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "model.onnx: the files are whole, and it computes what it should." in checked.stdout
    names = [CARD.classes[i] for i in sample["output_0"].argmax(1)]
    assert given.stdout.splitlines()[-1] == f"top-1: {' '.join(names)}"
    assert "shape 1,3" in drawn.stdout

    sample = dict(sample)
    sample["output_0"][1, 2] += 1e-3 * np.abs(sample["output_0"]).max()
    np.savez(arrived / "sample.npz", **sample)
    unsigned = node("--check")
    sign(arrived)
    signed = node("--check")
    assert unsigned.returncode == signed.returncode == 1
    assert '"sample.npz" is missing or is not what was shipped' in unsigned.stderr
    assert "Output 0 of model.onnx is not that of sample.npz" in signed.stderr


# --- what cannot be packaged ----------------------------------------------------------------------


def another_model(run):
    """Put another model in the place of the run's."""
    export_onnx(nn.Linear(8, 3), run / "model.onnx", torch.zeros(1, 8))


def another_int8(run):
    export_onnx(nn.Linear(8, 4), run / "model.int8.onnx", torch.zeros(1, 8))


def other_inputs(run):
    notes = {"fingerprint": metadata_of(run / "model.onnx")["fingerprint"]}
    export_onnx(nn.Linear(8, 4), run / "model.int8.onnx", torch.zeros(1, 8), metadata=notes)


def broken_model(run):
    forget(run)
    (run / "model.onnx").write_bytes(b"x")


DAMAGES = {
    "no run": (lambda run: shutil.rmtree(run), "is not there"),
    "no model": (lambda run: (run / "model.onnx").unlink(), "Make it: pbcompress export"),
    "no sample": (lambda run: (run / "sample.safetensors").unlink(), "has no sample"),
    "a broken sample": (
        lambda run: (run / "sample.safetensors").write_bytes(b"x"),
        "does not belong",
    ),
    "another sample": (
        lambda run: shutil.copy(run / "weights.safetensors", run / "sample.safetensors"),
        "does not belong to the state",
    ),
    "a broken model": (broken_model, "no whole ONNX file"),
    "a model that was changed": (another_model, "was changed since"),
    "an int8 model of its own": (another_int8, "does not say that it is of this run"),
    "another int8 model": (other_inputs, "other inputs or outputs"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_says_what_to_do_and_leaves_nothing(name, run):
    damage, sentence = DAMAGES[name]
    damage(run)
    with pytest.raises(StateMismatchError, match=sentence):
        package(run, run.parent / "a" / "b")
    assert [p.name for p in run.parent.iterdir()] == (["run"] if run.exists() else [])


def test_a_model_of_another_network_is_told_by_its_outputs(run):
    forget(run)
    another_model(run)
    with pytest.raises(ExportMismatchError, match="not the network of this run") as caught:
        package(run, run.parent / "out")
    assert caught.value.max_difference > 1e-3
    assert not (run.parent / "out").exists()


def test_a_known_checksum_that_fits_is_accepted(run):
    state = json.loads((run / "state.json").read_text())
    digest = hashlib.sha256((run / "model.onnx").read_bytes()).hexdigest()
    assert state["facts"]["deployment"]["file"]["sha256"] == digest
    assert package(run, run.parent / "out").files["model.onnx"]


def test_weights_beside_a_model_go_with_it(run):
    forget(run)
    proto = onnx.load(run / "model.onnx")
    onnx.save(
        proto,
        run / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    save_again(run / "model.onnx")
    size = (run / "model.onnx.data").stat().st_size
    found = package(run, run.parent / "out")
    assert found.files["model.onnx.data"] == size > 1000
    assert found.models["model.onnx"]["bytes"] == size + found.files["model.onnx"]
    (run.parent / "out" / "model.onnx.data").unlink()
    assert "'model.onnx.data' is missing" in run_alone(run.parent / "out", "--check").stderr


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a/b", "a b", "é", "x" * 97, "a\n"])
def test_a_name_is_one_that_the_hub_takes(name, run):
    if name == "":
        with pytest.raises(CompressionError, match="Pass name="):
            package(run, run.parent / "not a name")
        return
    with pytest.raises(CompressionError, match="was to be named"):
        package(run, run.parent / "out", name=name)


def test_a_folder_that_is_there_is_replaced_only_if_asked_and_a_package(run):
    out = run.parent / "out"
    package(run, out)
    (out / "note").write_text("mine")
    with pytest.raises(CompressionError, match="is there already"):
        package(run, out)
    assert (out / "note").read_text() == "mine"

    package(run, out, CardConfig(license="mit"), overwrite=True)
    assert sorted(p.name for p in out.iterdir()) == FILES
    assert 'license: "mit"' in (out / "README.md").read_text()

    (out / "config.json").unlink()
    with pytest.raises(CompressionError, match="no package of pbcompress"):
        package(run, out, overwrite=True)
    assert len(list(out.iterdir())) == len(FILES) - 1
    assert sorted(p.name for p in run.parent.iterdir()) == ["out", "run"]


def test_a_path_below_a_file_is_refused(run):
    (run.parent / "file").write_text("a file")
    for out in ("file/x", "file/x/y", "file"):
        with pytest.raises(CompressionError, match=r"is a file|is there already"):
            package(run, run.parent / out)
    assert (run.parent / "file").read_text() == "a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_refused(run):
    (run.parent / "closed").mkdir(mode=0o500)
    with pytest.raises(CompressionError, match="could not be"):
        package(run, run.parent / "closed" / "x")


def test_a_package_whose_check_fails_is_not_kept(run, tmp_path, monkeypatch):
    runners = Path(shutil.copytree(packaging.RUNNERS, tmp_path / "runners"))
    (runners / "run.py").write_text("raise SystemExit('this is why')\n")
    monkeypatch.setattr(packaging, "RUNNERS", runners)
    with pytest.raises(CompressionError, match="this is why"):
        package(run, tmp_path / "new" / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "runners"]


def test_a_former_package_comes_back_where_the_new_one_cannot_take_its_place(run, monkeypatch):
    out = run.parent / "out"
    package(run, out)
    before = (out / "README.md").read_bytes()
    rename = Path.rename

    def failing(self, target):
        if self.name == "package":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(CompressionError, match="No space left"):
        package(run, out, overwrite=True)
    assert (out / "README.md").read_bytes() == before
    assert sorted(p.name for p in run.parent.iterdir()) == ["out", "run"]


def test_a_package_that_waited_when_its_call_was_killed_comes_back(run):
    out = run.parent / "out"
    package(run, out)
    before = (out / "README.md").read_bytes()
    out.rename(run.parent / ".out.former")
    (run.parent / ".pbcompress.0123abcd.draft").mkdir()
    with pytest.raises(CompressionError, match="is there already"):
        package(run, out)
    assert (out / "README.md").read_bytes() == before
    package(run, out, overwrite=True)
    assert sorted(p.name for p in run.parent.iterdir()) == ["out", "run"]


# --- a result, and the command line ---------------------------------------------------------------


def test_a_result_is_packaged_without_a_run(finished, tmp_path):
    result = replace(finished[0], deployment=None)  # nothing was exported before
    found = result.package(tmp_path / "points", CardConfig(license="mit"), name="other")
    text = (tmp_path / "points" / "README.md").read_text()
    assert "# other" in text
    assert int(re.search(r"run beside torch (\d+) times", text)[1]) >= 12
    assert run_alone(tmp_path / "points", "--check").returncode == 0
    assert list(found.models) == ["model.onnx"]


def test_a_result_is_exported_only_where_the_package_can_have_its_place(finished, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(CompressionError, match="is there already"):
        finished[0].package(tmp_path / "out", int8="never looked at")


def test_a_result_writes_files_for_torch(finished, tmp_path):
    result = finished[0]
    assert result.export_pt2(tmp_path / "x.pt2").max_difference == 0
    assert result.save_spec(tmp_path / "x.safetensors").max_difference == 0


@pytest.mark.slow
def test_an_int8_model_is_packaged_where_it_is_worth_it(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 512, generator=generator)
    data = Data(train=[(x, x[:, :3].argmax(1))], val=[(x, x[:, :3].argmax(1))])
    net = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(),
                        nn.Linear(1024, 3))  # fmt: skip
    config = CompressConfig.from_dict({"recovery": {"epochs": 1}, "dendrites": {"max_sets": 0}})
    result = compress(net, 0.9, data=data, config=config, progress=False)
    found = result.package(tmp_path / "net", int8=data)
    report = result.export_onnx(tmp_path / "x.onnx", quantize="int8", data=data)
    assert report.quantization.accepted  # a network this wide is faster in 8 bits
    assert list(found.models) == ["model.onnx", "model.int8.onnx"]
    int8 = found.models["model.int8.onnx"]
    assert int8["bytes"] < found.models["model.onnx"]["bytes"] / 3
    assert 1e-4 < int8["tolerance"] < 0.2
    text = (tmp_path / "net" / "README.md").read_text()
    assert "Fewer bits: " in text
    assert "The scores are those of `model.onnx`" in text
    checked = run_alone(tmp_path / "net", "--check")
    assert checked.stdout.count("computes what it should") == 2


def test_the_command_packages_and_says_where_to_look(run, tmp_path, capsys):
    classes = tmp_path / "classes.txt"
    classes.write_text("left\nright\nboth\n")
    words = ["--license", "mit", "--dataset", "points", "--dataset", "more", "--tag", "tiny"]
    words += ["--classes", str(classes), "--task", "other", "--name", "net", "--overwrite"]
    assert main(["package", str(run), str(tmp_path / "out"), *words]) == 0
    assert "README.md" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["name"], config["classes"]) == ("net", ["left", "right", "both"])

    assert main(["package", str(run)]) == 0
    assert (run / "package" / "run.py").is_file()
    capsys.readouterr()
    assert main(["package", str(run)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["package", str(run), str(tmp_path / "x"), "--classes", "nowhere"]) == 1
    assert "cannot be read" in capsys.readouterr().err
