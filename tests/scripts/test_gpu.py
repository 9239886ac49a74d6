"""The benchmark for a GPU, in small and on a CPU; and the parts that its data travel in."""

import itertools
import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pbcompress as pb
from model_zoo.datasets import ImageDataset, load_dataset
from scripts.gpu import image_parts, smoke
from scripts.gpu import run as gpu

TINY = gpu.Setting(
    {"name": "small_cnn", "in_channels": 3, "widths": (8, 12), "pool": True, "num_classes": 4},
    epochs=10,
    base_epochs=2,
    num_val=40,
    batch_size=40,
)
ARMS = ("width", "width, distilled", "auto")


def coloured_digits():
    """Digits of four classes, with colours."""
    digits = load_dataset("digits")
    colours = torch.tensor([255, 128, 64]).view(3, 1, 1)

    def part(images, labels, count):
        kept = (labels < 4).nonzero().flatten()[:count]
        images = (images[kept].int() * colours // 255).byte()
        return images, labels[kept]

    train = part(digits.train_images, digits.train_labels, 160)
    test = part(digits.test_images, digits.test_labels, 60)
    return ImageDataset.from_tensors("digits", *train, *test)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    paths = image_parts.write_parts(coloured_digits(), folder, part_bytes=3000)
    assert len(paths) > 1
    return folder


def whole(parts, folder):
    cells = [(0, 0.5, arm) for arm in ARMS]
    lines = folder / "lines.jsonl"
    done = gpu.run(parts, folder / "state", lines, cells, TINY, 60)
    return done, [json.loads(line) for line in lines.read_text().splitlines()]


@pytest.fixture(scope="module")
def lines(parts, tmp_path_factory):
    done, found = whole(parts, tmp_path_factory.mktemp("whole"))
    assert done
    return found


@pytest.mark.slow
def test_all_arms_are_within_their_target_and_take_as_many_steps(lines):
    assert [line["arm"] for line in lines] == list(ARMS)
    assert {line["steps"] for line in lines} == {10 * 3}
    for line in lines:
        assert 0 < line["params"] <= 0.5 * line["base"]["params"]
        assert line["machine"] == "CPU"
    assert len({json.dumps(line["base"]) for line in lines}) == 1


@pytest.mark.slow
def test_pieces_come_to_the_same_lines(lines, parts, tmp_path, monkeypatch):
    class Counter(pb.Callback):
        """Ends a piece after so many epochs, those that were saved among them."""

        def __init__(self, most):
            self.left = most

        def on_epoch(self, record):
            self.left -= 1
            if self.left < 0:
                raise gpu.PieceOverError

    limits = itertools.count(3, 9)
    monkeypatch.setattr(gpu, "Clock", lambda _: Counter(next(limits)))
    pieces = 1
    cells = [(0, 0.5, arm) for arm in ARMS]
    path = tmp_path / "lines.jsonl"
    while not gpu.run(parts, tmp_path / "state", path, cells, TINY, 60):
        pieces += 1
    assert pieces >= 3
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line | {"seconds": 0} for line in found] == [line | {"seconds": 0} for line in lines]


def test_a_clock_ends_a_piece_after_its_minutes():
    gpu.Clock(60).on_epoch({})
    with pytest.raises(gpu.PieceOverError):
        gpu.Clock(-1).on_epoch({})


def test_the_setting_that_it_is_for():
    network = gpu.create_model("resnet56")
    assert sum(p.numel() for p in network.parameters()) == 855_770
    assert gpu.TARGETS == (0.5, 0.25, 0.125)


# --- parts ----------------------------------------------------------------------------------------


@given(
    shape=st.tuples(st.integers(0, 3), st.sampled_from([1, 3]), st.integers(1, 5), st.just(4)),
    seed=st.integers(0, 99),
)
def test_packing_loses_nothing(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    before = images.clone()
    assert torch.equal(image_parts.unpack(image_parts.pack(images), shape[1:]), images)
    assert torch.equal(images, before)


def test_parts_give_the_data_set_back(parts):
    found, expected = image_parts.read_parts(parts), coloured_digits()
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert max(path.stat().st_size for path in parts.glob("part-*")) == 3000


def test_a_missing_part_is_named(parts, tmp_path):
    for path in sorted(parts.iterdir())[:-1]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"\d of \d parts, or a damaged one"):
        image_parts.read_parts(tmp_path)


def test_the_command_writes_a_share_of_the_classes(tmp_path, capsys):
    assert image_parts.main(["digits", str(tmp_path / "parts"), "--train", "100"]) == 0
    assert "part-00: " in capsys.readouterr().out
    dataset = image_parts.read_parts(tmp_path / "parts")
    assert len(dataset.train_labels) == 100
    assert len(dataset.test_labels) == 360


@pytest.mark.parametrize("path", ["absorbed linear", "distilled by relations", "inputs alone"])
def test_paths_are_tried_in_small(path: str) -> None:
    (found,) = smoke.run(torch.device("cpu"), [path])
    assert found["path"] == path
    assert found["error"] is None


def test_a_path_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(smoke.PATHS, "inputs alone", lambda device: 1 / 0)
    assert smoke.main(["--device", "cpu", "--paths", "inputs alone"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out
