"""Programs of torch: what is written is proven, and loads where pbcompress is not."""

import subprocess
import sys
import zipfile

import pytest
import torch
from torch import nn

from pbcompress import (
    CompressionError,
    ExportMismatchError,
    export_pt2,
    save_spec,
)
from tests.support.exported import FORMS, INPUTS, Fickle, Named, keep_outputs, networks

WRITERS = {".pt2": export_pt2, ".safetensors": save_spec}

# A process that cannot import pbcompress, nor anything from the folder of this project.
STRANGER = """
import sys, torch
from pathlib import Path
class Refuse:
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] not in ("pbcompress", "model_zoo"), name
sys.meta_path.insert(0, Refuse())
from safetensors.torch import load_file
torch.set_num_threads(1)
for file in map(Path, sys.argv[1:]):
    known = load_file(file.with_suffix(".known"))
    network = torch.export.load(file).module()
    print(file.stem, bool(torch.equal(network(known["input"]), known["output"])))
"""


def check_programs(cases, folder):
    for name, (network, inputs) in cases.items():
        report = export_pt2(network, folder / f"{name}.pt2", inputs)
        assert report.max_difference == 0
        assert report.batch_sizes == (1, 2, 5)
        assert report.checks == 12
        assert report.file_bytes == (folder / f"{name}.pt2").stat().st_size
        keep_outputs(network, inputs, folder / f"{name}.known")
    files = [str(folder / f"{name}.pt2") for name in cases]
    command = [sys.executable, "-c", STRANGER, *files]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    assert found.stdout.split() == [word for name in cases for word in (name, "True")]


def test_some_networks_load_without_pbcompress(tmp_path):
    check_programs(networks(["mlp"], ["full", "tied"]), tmp_path)


def test_operations_in_place_stay(tmp_path):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            y = self.layer(x)
            y.relu_()
            y.unsqueeze(0).add_(2.0)
            return y

    assert export_pt2(InPlace(), tmp_path / "x.pt2", torch.randn(1, 3)).max_difference == 0
    assert save_spec(InPlace(), tmp_path / "x.safetensors", torch.randn(1, 3)).max_difference == 0


@pytest.mark.slow
def test_every_network_of_the_zoo_and_every_form_loads_without_pbcompress(tmp_path):
    assert len(INPUTS) + len(FORMS) == 15
    check_programs(networks(INPUTS, FORMS), tmp_path)


def test_a_program_tells_nothing_of_its_maker(tmp_path):
    inputs = torch.full((2, 3), 0.731)
    report = export_pt2(nn.Sequential(nn.Linear(3, 2)), tmp_path / "x.pt2", inputs)
    with zipfile.ZipFile(report.path) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b"aten.linear.default" in content
    for secret in (b"site-packages", b".py", inputs.numpy().tobytes()[:4]):
        assert secret not in content


@pytest.mark.parametrize("suffix", WRITERS)
class TestBoth:
    """What holds for both kinds of files."""

    def test_several_inputs_and_outputs_keep_their_structure(self, suffix, tmp_path):
        inputs = {"right": torch.randn(2, 5), "left": torch.randn(2, 3)}
        report = WRITERS[suffix](Named().eval(), tmp_path / f"x{suffix}", inputs)
        assert report.max_difference == 0
        assert "are equal over 12 runs at batch sizes 1, 2, 5" in str(report)

    def test_samples_are_compared_too(self, suffix, tmp_path):
        samples = (torch.randn(4, 3), torch.randn(1, 3))
        report = WRITERS[suffix](
            nn.Linear(3, 2), tmp_path / f"x{suffix}", torch.randn(1, 3), samples=samples
        )
        assert report.checks == 3 * (3 + 3)

    def test_a_mismatch_raises_and_a_former_file_stays(self, suffix, tmp_path):
        path = tmp_path / f"x{suffix}"
        path.write_text("former")
        with pytest.raises(ExportMismatchError, match="differ by") as caught:
            WRITERS[suffix](Fickle(), path, torch.randn(1, 3))
        assert caught.value.max_difference >= 1
        assert path.read_text() == "former"
        assert list(tmp_path.iterdir()) == [path]

    def test_the_network_stays_as_it_was(self, suffix, tmp_path):
        network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()
        before = {name: t.clone() for name, t in network.state_dict().items()}
        inputs, state = torch.randn(2, 3), torch.get_rng_state()
        WRITERS[suffix](network, tmp_path / f"x{suffix}", inputs)
        assert all(module.training for module in network.modules())
        assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_fixed_batch_says_so_and_can_be_written_as_such(self, suffix, tmp_path):
        class Fixed(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(4, 4)

            def forward(self, x):
                return self.layer(x).reshape(2, 2, 2)

        write, path = WRITERS[suffix], tmp_path / f"x{suffix}"
        with pytest.raises(CompressionError, match="dynamic_batch=False"):
            write(Fixed(), path, torch.randn(2, 4))
        assert not list(tmp_path.iterdir())
        assert write(Fixed(), path, torch.randn(2, 4), dynamic_batch=False).batch_sizes == (2,)

    @pytest.mark.parametrize("dynamic_batch", [True, False])
    def test_an_input_of_another_length_is_no_batch(self, suffix, dynamic_batch, tmp_path):
        class Weighted(nn.Module):
            def forward(self, x, table):
                return x @ table

        inputs = torch.randn(2, 3), torch.randn(3, 4)
        report = WRITERS[suffix](
            Weighted(), tmp_path / f"x{suffix}", inputs, dynamic_batch=dynamic_batch
        )
        assert report.batch_sizes == ((1, 2, 5) if dynamic_batch else (2,))

    @pytest.mark.parametrize(
        ("path", "inputs", "sentence"),
        [
            ("x.pth", torch.zeros(1, 3), "must end in"),
            ("x", torch.zeros(1, 3), "must end in"),
            ("file/x", torch.zeros(1, 3), "could not be"),
            ("x", (torch.zeros(1, 3), torch.zeros(1)), "bound to forward"),
            ("x", 3, "example_inputs"),
        ],
        ids=["other ending", "no ending", "below a file", "too many inputs", "no inputs"],
    )
    def test_bad_input_is_refused_before_the_work(self, suffix, path, inputs, sentence, tmp_path):
        (tmp_path / "file").write_text("a file")
        ends = "must end" in sentence
        with pytest.raises(CompressionError, match=sentence):
            WRITERS[suffix](nn.Linear(3, 2), tmp_path / (path if ends else path + suffix), inputs)
        assert [p.name for p in tmp_path.iterdir()] == ["file"]
