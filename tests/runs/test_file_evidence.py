"""The report of a run from its shipped file: every number derived anew, and what does not fit."""

import hashlib
import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from scipy import stats
from torch import nn

import pbcompress as pb
from pbcompress.cli.main import main
from pbcompress.errors import CompressionError, StateMismatchError
from pbcompress.onnx_files.store import save
from pbcompress.report.writing import to_html, to_markdown
from pbcompress.runs.facts import RunFacts
from pbcompress.runs.file_evidence import misfits, with_evidence
from pbcompress.runs.file_inspection import inspect_file
from pbcompress.runs.run_folder import read_run
from tests.support import hostile_files as hostile

SIDE = 6  # of the images


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * SIDE * SIDE, 3),
    )


def make_data() -> pb.Data:
    generator = torch.Generator().manual_seed(0)

    def split(count):
        x = torch.randn(count, 1, SIDE, SIDE, generator=generator)
        y = (x.mean((1, 2, 3)) * 6).round().clamp(-1, 1).long() + 1
        return list(zip(x.split(40), y.split(40), strict=True))

    return pb.Data(train=split(120), val=split(80), test=split(120))


def make_wrong_data() -> pb.Data:
    batches = [(torch.randn(4, 7), torch.zeros(4, dtype=torch.long))]
    return pb.Data(train=batches, val=batches)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run whose network with dendrites has a control beside it."""
    folder = tmp_path_factory.mktemp("run")
    config = pb.CompressConfig(
        dendrites=pb.DendriteConfig(rule="gradient", form="shared", share=0.3, max_sets=1),
        recovery=pb.RecoveryConfig(epochs=2, dendrite_epochs=1),
    )
    pb.compress(
        make_network(),
        0.5,
        data=make_data(),
        config=config,
        run_dir=folder,
        control=True,
        progress=False,
    )
    return folder


@pytest.fixture(scope="module")
def looked_at(finished) -> RunFacts:
    """Facts of the run with its evidence."""
    facts, _ = read_run(finished)
    return with_evidence(facts, finished, data=make_data())


@pytest.fixture
def run_dir(finished, tmp_path, monkeypatch) -> Path:
    """A copy of the run that a test may spoil; the files are not timed."""
    monkeypatch.setattr("pbcompress.runs.file_evidence._timed", lambda paths: None)
    return Path(shutil.copytree(finished, tmp_path / "run"))


def problems(run_dir: Path) -> tuple[str, ...]:
    facts, _ = read_run(run_dir)
    return with_evidence(facts, run_dir).evidence.problems


# --- every number, another way --------------------------------------------------------------------


def test_every_figure_about_the_file_is_derived_from_its_bytes(finished, looked_at):
    path = finished / "model.onnx"
    proto = onnx.load(path)
    (file,) = looked_at.evidence.files
    shipped = looked_at.shipped
    assert looked_at.problems == ()
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert file.file_bytes == shipped.bytes_after == path.stat().st_size
    floats = [numpy_helper.to_array(t) for t in proto.graph.initializer]
    assert file.weights == sum(a.size for a in floats if a.dtype == np.float32)
    kinds = Counter(node.op_type for node in proto.graph.node)
    assert file.operations == shipped.proof.operations == dict(kinds)
    assert file.opset == shipped.proof.opset == proto.opset_import[0].version
    assert file.input_names == tuple(value.name for value in proto.graph.input)
    assert file.output_names == tuple(value.name for value in proto.graph.output)
    noted = {entry.key: entry.value for entry in proto.metadata_props}
    assert len(noted.pop("sha256")) == 64
    assert file.metadata == noted
    assert shipped.file == file


def test_work_and_memory_of_the_file_by_running_every_node(finished, looked_at):
    """Every value of the graph is asked for, and the work read off the shapes that come out."""
    proto = onnx.load(finished / "model.onnx")
    values = [name for node in proto.graph.node for name in node.output if name]
    returned = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=v) for v in values if v not in returned)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    names = [value.name for value in session.get_outputs()]
    image = np.zeros((1, 1, SIDE, SIDE), np.float32)
    found = dict(zip(names, session.run(names, {proto.graph.input[0].name: image}), strict=True))
    weights = {t.name: list(t.dims) for t in proto.graph.initializer}
    work = 0
    for node in proto.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            reads = math.prod(weights[node.input[1]])
            outputs = weights[node.input[1]][1 if node.op_type == "MatMul" else 0]
            work += found[node.output[0]].size * reads // outputs
    (file,) = looked_at.evidence.files
    assert file.flops == work
    largest = max(array.nbytes for array in found.values())
    assert largest < file.peak_activations <= sum(array.nbytes for array in found.values())


def test_the_accuracy_is_that_of_the_file(finished, looked_at):
    session = onnxruntime.InferenceSession(finished / "model.onnx")
    name = session.get_inputs()[0].name
    hits = sum(
        int((session.run(None, {name: x.numpy()})[0].argmax(1) == y.numpy()).sum())
        for x, y in make_data().test
    )
    (score,) = looked_at.evidence.scores
    interval = stats.binomtest(hits, 120).proportion_ci(method="wilson")
    assert score.value == pytest.approx(hits / 120) == looked_at.after.score.test
    assert (score.low, score.high) == pytest.approx((interval.low, interval.high))


def test_costs_of_the_run_are_those_of_the_networks(finished, looked_at):
    model = pb.load(finished, make_network)
    for network, facts in ((make_network(), looked_at.before), (model, looked_at.after)):
        assert facts.cost == pb.measure(network, torch.zeros(1, 1, SIDE, SIDE))


def test_the_benchmark_is_of_the_file(looked_at):
    (timed,) = looked_at.evidence.bench.files
    (file,) = looked_at.evidence.files
    assert timed.name == file.name == "model.onnx"
    assert (timed.params, timed.flops, timed.file_bytes, timed.peak_activations) == (
        file.weights, file.flops, file.file_bytes, file.peak_activations,
    )  # fmt: skip
    assert 0 < timed.latency.median <= timed.latency.p95


def test_page_and_markdown_hold_every_number_of_the_file(finished, looked_at):
    _, history = read_run(finished)
    (file,) = looked_at.evidence.files
    (score,) = looked_at.evidence.scores
    timed = looked_at.evidence.bench.files[0]
    for text in (to_html(looked_at, history), to_markdown(looked_at, history)):
        for number in (
            file.sha256[:12], f"{file.file_bytes:,}", f"{file.weights:,}",
            f"{file.flops:,}", f"{file.peak_activations:,}",
            f"{timed.latency.median:.3f}", f"{timed.peak_memory:,}",
            f"{score.value:.4f} ({score.low:.4f} to {score.high:.4f})",
            f"{sum(looked_at.before.cost.dispatched.values()):,}",
        ):  # fmt: skip
            assert number in text, number
        assert "when this report was made" in text


def test_a_report_without_the_folder_has_the_file_as_the_run_read_it(finished):
    facts, history = read_run(finished)
    text = to_markdown(facts, history)
    assert "Read from the file when the run had written it" in text
    assert hashlib.sha256((finished / "model.onnx").read_bytes()).hexdigest()[:12] in text


def test_the_run_and_its_facts_stay_as_they_were(run_dir):
    facts, _ = read_run(run_dir)
    text = repr(facts)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with_evidence(facts, run_dir)
    assert repr(facts) == text
    assert before == {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


# --- what does not fit ----------------------------------------------------------------------------


def other_file(run_dir: Path) -> None:
    pb.export_onnx(nn.Linear(36, 3), run_dir / "model.onnx", torch.zeros(2, 36))


def test_another_file_in_the_place_of_the_shipped_one_is_told(run_dir, capsys):
    other_file(run_dir)
    found = problems(run_dir)
    assert len(found) == 5
    for word in ("SHA-256", "bytes", "weights", "FLOPs", "operations"):
        assert any(f"not the file that the run wrote: {word}" in text for text in found), word
    assert any("weights 111, the run had" in text for text in found)
    assert main(["report", str(run_dir)]) == 0
    assert found[0] in capsys.readouterr().out
    html = (run_dir / "report.html").read_text()
    assert html.count('class="problem" role="alert"') == 5
    assert "weights 111" in html


def test_one_changed_weight_is_told(run_dir):
    proto = onnx.load(run_dir / "model.onnx")
    tensor = next(t for t in proto.graph.initializer if t.data_type == 1)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] += 1
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    save(proto, run_dir / "model.onnx")
    (found,) = problems(run_dir)
    assert "SHA-256" in found


def test_a_file_that_names_another_run_is_told(run_dir):
    facts, _ = read_run(run_dir)
    assert misfits(inspect_file(run_dir / "model.onnx"), facts) == ()
    proto = onnx.load(run_dir / "model.onnx")
    onnx.helper.set_model_props(proto, {"fingerprint": "0123456789abcdef"})
    onnx.save(proto, run_dir / "model.onnx")
    assert "model.onnx says that it is of another run, 0123456789ab." in misfits(
        inspect_file(run_dir / "model.onnx"), facts
    )


def test_a_missing_file_is_told(run_dir):
    (run_dir / "model.onnx").unlink()
    (found,) = problems(run_dir)
    assert "model.onnx is not in the folder" in found
    facts, history = read_run(run_dir)
    text = to_markdown(with_evidence(facts, run_dir), history)
    assert found in text
    assert "As the run noted it; the folder has no file to read." in text
    assert "when this report was made" not in text


@pytest.mark.parametrize("reason", [None, "the exporter stopped"])
def test_a_run_that_exported_nothing_has_nothing_to_fit(reason, run_dir):
    facts, history = read_run(run_dir)
    facts = replace(facts, deployment=reason)
    (found,) = with_evidence(facts, run_dir).problems
    assert "exported nothing, and there is a model.onnx" in found
    (run_dir / "model.onnx").unlink()
    plain = with_evidence(facts, run_dir)
    assert plain.problems == ()
    assert "The shipped file" not in to_html(plain, history)


def test_every_file_of_the_folder_has_a_column(run_dir):
    shutil.copy(run_dir / "model.onnx", run_dir / "a.onnx")
    facts, history = read_run(run_dir)
    facts = with_evidence(facts, run_dir, data=make_data())
    assert [file.name for file in facts.evidence.files] == ["model.onnx", "a.onnx"]
    assert len(facts.evidence.scores) == 2
    assert "| model.onnx | a.onnx |" in to_markdown(facts, history)


def test_a_file_that_takes_no_random_inputs_is_not_timed_and_the_report_says_so(finished, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    proto = onnx.load(folder / "model.onnx")
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    save(proto, folder / "model.onnx")
    facts, history = read_run(folder)
    assert "The files were not timed: Input" in to_markdown(with_evidence(facts, folder), history)


def test_a_file_that_does_not_run_is_not_timed_and_the_report_says_so(finished, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    hostile.runs_for_two_alone(tmp_path).rename(folder / "model.onnx")
    facts, history = read_run(folder)
    facts = with_evidence(facts, folder)
    assert "The files were not timed: The file does not run: " in facts.evidence.bench
    assert "<script" not in to_html(facts, history)


@pytest.mark.parametrize("name", hostile.FILES)
def test_a_damaged_or_hostile_file_makes_no_report(name, run_dir, capsys):
    (run_dir / "model.onnx").unlink()
    (run_dir / "report.html").unlink()
    hostile.FILES[name](run_dir).rename(run_dir / "model.onnx")
    assert main(["report", str(run_dir)]) in (0, 1)
    output = capsys.readouterr()
    if name in ("another domain", "an operator set of the future"):  # whole, but not the run's
        assert "not the file that the run wrote" in output.out
        return
    lines = output.err.strip().splitlines()
    assert len(lines) == 1
    sentences = ("model.onnx is no whole ONNX file", "is not there", "which is not beside the file")
    assert any(sentence in lines[0] for sentence in sentences)
    assert not (run_dir / "report.html").exists()


def test_damaged_run_files_are_named(run_dir, capsys):
    (run_dir / "history.jsonl").write_text('{"stage": "wid')
    with pytest.raises(StateMismatchError, match=r"history\.jsonl.*line 1"):
        read_run(run_dir)
    (run_dir / "history.jsonl").unlink()
    assert len(read_run(run_dir)[1]) == 0
    (run_dir / "state.json").write_text('{"kind": "pbc')
    assert main(["report", str(run_dir)]) == 1
    assert "truncated" in capsys.readouterr().err
    (run_dir / "state.json").unlink()
    assert main(["report", str(run_dir)]) == 1
    assert "is not there" in capsys.readouterr().err


def test_data_of_the_wrong_shape_are_named_and_no_report_is_written(run_dir, capsys):
    (run_dir / "report.html").unlink()
    command = ["report", str(run_dir), "--data", "tests.runs.test_file_evidence:make_wrong_data"]
    assert main(command) == 1
    assert "model.onnx was to be run on the data" in capsys.readouterr().err
    assert not (run_dir / "report.html").exists()


def test_a_metric_that_raises_is_named(run_dir):
    task = pb.Task(metric=lambda output, target: {}["missing"], name="mine")
    facts, _ = read_run(run_dir)
    with pytest.raises(CompressionError, match=r"\(mine\).*KeyError: 'missing'"):
        with_evidence(facts, run_dir, data=make_data(), task=task)


def test_a_folder_that_cannot_be_written_to_keeps_its_report(run_dir, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    before = (run_dir / "report.html").read_bytes()
    assert main(["report", str(run_dir), "--out", str(tmp_path / "file" / "r.html")]) == 1
    assert "could not be" in capsys.readouterr().err
    assert (run_dir / "report.html").read_bytes() == before


def test_the_command_writes_every_form(run_dir, tmp_path):
    for ending in ("html", "md", "json"):
        target = tmp_path / f"r.{ending}"
        command = ["report", str(run_dir), "--out", str(target)]
        assert main([*command, "--data", "tests.runs.test_file_evidence:make_data"]) == 0
        assert "(n=120)" in target.read_text() or ending == "json"
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["facts"]["evidence"]["scores"][0]["method"] == "Wilson"
