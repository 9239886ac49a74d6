"""Checkpoints on disk: cut as the model in memory is, or refused with nothing written."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import pbcompress as pb
from pbcompress.errors import UnwritableError


class Block(nn.Module):
    """A gated layer with a norm."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.gate, self.up, self.down = nn.Linear(16, 48), nn.Linear(16, 48), nn.Linear(48, 16)

    def forward(self, x):
        y = self.norm(x)
        return x + self.down(torch.sigmoid(self.gate(y)) * self.up(y))


class Net(nn.Module):
    """Blocks between two layers, a convolution first, and a tied layer last."""

    def __init__(self, blocks=4, outputs=16):
        super().__init__()
        self.conv, self.bn = nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.mid, self.tied = nn.Linear(16, 16), nn.Linear(16, 16)
        self.tied.weight = self.mid.weight
        self.head = nn.Linear(16, outputs)

    def forward(self, x):
        x = self.bn(self.conv(x)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.tied(torch.relu(self.mid(x))))


INPUTS = torch.zeros(1, 3, 5)


@pytest.fixture
def net():
    torch.manual_seed(0)
    network = Net().eval()
    network.bn.running_mean.uniform_()
    return network


def weights_of(network):
    tensors = dict(network.state_dict())
    del tensors["tied.weight"]  # as save_pretrained leaves out what is shared
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def save_sharded(network, folder, shards=3, dtype=None):
    folder.mkdir()
    weights = weights_of(network)
    if dtype is not None:
        weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in weights.items()}
    names, places = sorted(weights), {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        own = {name: weights[name] for name in names[number::shards]}
        save_file(own, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(own, file))
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def load(folder):
    return {n: t for path in folder.glob("*.safetensors") for n, t in load_file(path).items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def without_data():
    with torch.device("meta"):
        return Net().eval()


def test_shards_are_cut_as_the_model_is(net, tmp_path):
    plan = pb.plan_widths(net, INPUTS, 0.5)
    folder = save_sharded(net, tmp_path / "whole")
    assert pb.shrink_files(plan, folder, tmp_path / "small") == plan
    assert_equal(load(tmp_path / "small"), weights_of(pb.shrink(net, plan)))
    index = json.loads((tmp_path / "small/model.safetensors.index.json").read_text())
    assert (
        index["weight_map"]
        == json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    )
    bytes_ = sum(t.numel() * t.element_size() for t in load(tmp_path / "small").values())
    assert index["metadata"]["total_size"] == bytes_
    assert (tmp_path / "small/tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_numbers_keep_their_precision(net, tmp_path, dtype):
    plan = pb.plan_widths(net, INPUTS, 0.5)
    folder = save_sharded(net, tmp_path / "whole", dtype=dtype)
    pb.shrink_files(plan, folder, tmp_path / "small")
    small = {
        n: t.to(dtype) if t.is_floating_point() else t
        for n, t in weights_of(pb.shrink(net, plan)).items()
    }
    assert_equal(load(tmp_path / "small"), small)


def test_a_plan_without_weights_chooses_the_units_that_one_with_weights_does(net, tmp_path):
    plan = pb.plan_widths(without_data(), INPUTS, 0.5)
    assert plan.choices
    assert "2 of 4 layers in 'blocks'" in plan.proven
    done = pb.shrink_files(plan, save_sharded(net, tmp_path / "whole"), tmp_path / "small")
    with_weights = pb.plan_widths(net, INPUTS, 0.5)
    assert with_weights.proven == "every layer, with its weights"
    assert {(s.layer, s.dim, s.removed) for s in done.steps} == {
        (s.layer, s.dim, s.removed) for s in with_weights.steps
    }
    assert_equal(load(tmp_path / "small"), weights_of(pb.shrink(net, with_weights)))


def test_a_plan_without_weights_is_kept_as_text(net):
    plan = pb.plan_widths(without_data(), INPUTS, 0.5)
    assert pb.WidthPlan.from_json(plan.to_json()) == plan


def test_one_file_stays_one_file(net, tmp_path):
    plan = pb.plan_widths(net, INPUTS, 0.5)
    (tmp_path / "whole").mkdir()
    save_file(weights_of(net), tmp_path / "whole/model.safetensors")
    pb.shrink_files(plan, tmp_path / "whole", tmp_path / "small")
    assert [path.name for path in (tmp_path / "small").iterdir()] == ["model.safetensors"]


def damage(folder, kind):
    first, second, _ = sorted(folder.glob("*.safetensors"))
    if kind == "missing":
        first.unlink()
    elif kind == "cut off":
        second.write_bytes(second.read_bytes()[:-7])
    elif kind == "header":
        second.write_bytes(b"\xff" * 64)
    elif kind == "swapped":
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
    elif kind == "index":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    elif kind == "outside":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a"}}')
    else:
        (folder / "model.safetensors.index.json").unlink()


KINDS = ["missing", "cut off", "header", "swapped", "index", "outside", "no index"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_checkpoint_is_refused_and_nothing_is_written(net, tmp_path, kind):
    plan = pb.plan_widths(net, INPUTS, 0.5)
    folder = save_sharded(net, tmp_path / "whole")
    damage(folder, kind)
    with pytest.raises(pb.StateMismatchError, match=r"Fetch it again|Give a folder"):
        pb.shrink_files(plan, folder, tmp_path / "small")
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("other", [Net(blocks=5), Net(blocks=3), nn.Linear(3, 3)])
def test_a_checkpoint_of_another_network_is_refused(net, tmp_path, other):
    plan = pb.plan_widths(net, INPUTS, 0.5)
    if isinstance(other, nn.Linear):
        other.register_parameter("tied", None)
        folder = tmp_path / "whole"
        folder.mkdir()
        save_file(other.state_dict(), folder / "model.safetensors")
    else:
        folder = save_sharded(other, tmp_path / "whole")
    with pytest.raises(pb.StateMismatchError, match="the architecture that it was made for"):
        pb.shrink_files(plan, folder, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_a_full_disk_is_said_and_the_same_call_goes_on(net, tmp_path, monkeypatch):
    plan = pb.plan_widths(without_data(), INPUTS, 0.5)
    folder = save_sharded(net, tmp_path / "whole")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    synced, sync = [], os.fsync

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UnwritableError, match=r"00002-of.*No space left"):
            pb.shrink_files(plan, folder, tmp_path / "small")
    (first,) = (tmp_path / "small").iterdir()
    made = first.stat().st_mtime_ns
    done = pb.shrink_files(plan, folder, tmp_path / "small")
    assert first.stat().st_mtime_ns == made
    assert_equal(load(tmp_path / "small"), weights_of(pb.shrink(net, done)))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_other_weights_are_never_overwritten(net, tmp_path):
    folder = save_sharded(net, tmp_path / "whole")
    pb.shrink_files(pb.plan_widths(net, INPUTS, 0.5), folder, tmp_path / "small")
    before = load(tmp_path / "small")
    plan = pb.plan_widths(net, INPUTS, 0.3)
    with pytest.raises(UnwritableError, match="made from something else"):
        pb.shrink_files(plan, folder, tmp_path / "small")
    with pytest.raises(UnwritableError, match="the checkpoint itself"):
        pb.shrink_files(plan, folder, folder)
    assert_equal(load(tmp_path / "small"), before)
