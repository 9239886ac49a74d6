"""Data sets: the files, the split, and the batches."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_zoo.datasets import BatchLoader, ImageDataset, load_dataset, make_loaders
from model_zoo.datasets.augment import random_crop_and_flip
from model_zoo.datasets.idx import read_idx
from model_zoo.datasets.split import stratified_split
from tests.support.idx_files import idx_bytes, random_images


def toy_dataset(num_train: int = 40, num_test: int = 6) -> ImageDataset:
    """Each image is constant and tells the place of its sample, so samples can be recognised."""
    places = torch.arange(num_train, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 4, 4)
    return ImageDataset(
        name="toy",
        train_images=places.contiguous(),
        train_labels=torch.arange(num_train) % 4,
        test_images=random_images(num_test, 2, 4, 4),
        test_labels=torch.arange(num_test) % 4,
        mean=(0.0, 0.5),
        std=(1 / 255, 0.25),
        num_classes=4,
    )


def places_in(loader: BatchLoader) -> list[int]:
    """Places of the samples of a toy loader, in the order in which they come."""
    return [round(float(image[0, 0, 0])) for inputs, _ in loader for image in inputs]


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_dataset("digits")


# --- digits -------------------------------------------------------------------------------------


def test_digits_has_a_fixed_test_part(digits: ImageDataset) -> None:
    assert digits.image_shape == (1, 8, 8)
    assert len(digits.train_labels) == 1437
    assert len(digits.test_labels) == 360
    assert digits.train_images.max() == 255
    assert torch.equal(digits.test_images, load_dataset("digits").test_images)
    # Pins the choice itself: accuracies are comparable only on the same test part.
    digest = hashlib.sha256(digits.test_images.numpy().tobytes()).hexdigest()
    assert digest.startswith("cbf9d0de5d77e013")


def test_digits_test_part_is_stratified(digits: ImageDataset) -> None:
    test_counts = digits.test_labels.bincount()
    counts = digits.train_labels.bincount() + test_counts
    assert ((test_counts - counts * 360 / 1797).abs() < 1).all()


def test_digits_parts_are_disjoint(digits: ImageDataset) -> None:
    from sklearn.datasets import load_digits

    # Images may repeat in the data, so count: both parts together are all images, once each.
    parts = torch.cat([digits.train_images, digits.test_images]).flatten(1)
    whole = torch.from_numpy(load_digits().data).mul(255 / 16).round().to(torch.uint8)
    assert sorted(parts.tolist()) == sorted(whole.tolist())


def test_digits_loaders_normalise_the_training_part(digits: ImageDataset) -> None:
    loaders = make_loaders(digits, num_val=137)
    batches = [*loaders.train, *loaders.val]
    inputs = torch.cat([batch for batch, _ in batches])
    assert inputs.dtype == torch.float32
    assert inputs.shape == (1437, 1, 8, 8)
    torch.testing.assert_close(inputs.mean(), torch.tensor(0.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(inputs.std(correction=0), torch.tensor(1.0), rtol=0, atol=1e-5)


def test_digits_validation_part_is_stratified(digits: ImageDataset) -> None:
    loaders = make_loaders(digits, num_val=200)
    share = loaders.val.labels.bincount() / digits.train_labels.bincount()
    torch.testing.assert_close(share, torch.full((10,), 200 / 1437), rtol=0, atol=1 / 139)


# --- loaders ------------------------------------------------------------------------------------


def test_loaders_split_the_training_part_without_overlap() -> None:
    loaders = make_loaders(toy_dataset(), batch_size=7, num_val=8)
    train, val = places_in(loaders.train), places_in(loaders.val)
    assert len(train) == loaders.train.num_samples == 32
    assert len(val) == loaders.val.num_samples == 8
    assert sorted(train + val) == list(range(40))
    assert loaders.val.labels.bincount().tolist() == [2, 2, 2, 2]


def test_images_keep_their_labels() -> None:
    dataset = toy_dataset()
    for inputs, labels in make_loaders(dataset, batch_size=7).train:
        places = inputs[:, 0, 0, 0].round().long()
        assert torch.equal(labels, dataset.train_labels[places])


def test_validation_part_depends_on_seed_only() -> None:
    dataset = toy_dataset()
    torch.manual_seed(1)
    first = places_in(make_loaders(dataset, seed=3).val)
    torch.manual_seed(2)
    assert places_in(make_loaders(dataset, seed=3, train_limit=5).val) == first
    assert places_in(make_loaders(dataset, seed=4).val) != first


def test_train_limit_keeps_classes_in_proportion() -> None:
    loaders = make_loaders(toy_dataset(), num_val=8, train_limit=12)
    assert loaders.train.labels.bincount().tolist() == [3, 3, 3, 3]
    assert not set(places_in(loaders.train)) & set(places_in(loaders.val))
    assert make_loaders(toy_dataset(), num_val=8, train_limit=99).train.num_samples == 32


def test_a_tenth_is_held_out_by_default() -> None:
    assert make_loaders(toy_dataset()).val.num_samples == 4


@pytest.mark.parametrize("augment", [False, True])
def test_seeding_torch_fixes_the_epoch(augment: bool) -> None:
    loader = make_loaders(toy_dataset(), batch_size=5, augment=augment).train
    epochs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        epochs.append(torch.cat([inputs for inputs, _ in loader]))
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])


def test_training_order_changes_from_epoch_to_epoch() -> None:
    torch.manual_seed(0)
    loader = make_loaders(toy_dataset(), batch_size=5).train
    first, second = places_in(loader), places_in(loader)
    assert first != second
    assert sorted(first) == sorted(second)


def test_validation_and_test_keep_their_order_and_the_generator() -> None:
    dataset = toy_dataset()
    loaders = make_loaders(dataset, batch_size=4, augment=True)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert places_in(loaders.val) == sorted(places_in(loaders.val))
    labels = torch.cat([labels for _, labels in loaders.test])
    assert torch.equal(labels, dataset.test_labels)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("batch_size", "sizes"), [(3, [3, 3]), (4, [4, 2]), (99, [6])])
def test_no_sample_is_dropped(batch_size: int, sizes: list[int]) -> None:
    loader = make_loaders(toy_dataset(), batch_size=batch_size).test
    assert len(loader) == len(sizes)
    assert [len(labels) for _, labels in loader] == sizes


def test_batches_are_normalised_per_channel() -> None:
    dataset = toy_dataset()
    ((inputs, labels),) = make_loaders(dataset).test
    expected = dataset.test_images.double() / 255
    expected[:, 0] = expected[:, 0] * 255
    expected[:, 1] = (expected[:, 1] - 0.5) / 0.25
    # float32: one multiplication and one addition instead of the two divisions
    torch.testing.assert_close(inputs, expected.float(), rtol=1e-5, atol=1e-5)
    assert labels.dtype == torch.int64


def test_changing_a_batch_leaves_the_data_alone() -> None:
    dataset = toy_dataset()
    loaders = make_loaders(dataset)
    for loader in (loaders.train, loaders.val, loaders.test):
        for inputs, labels in loader:
            inputs.zero_()
            labels.fill_(-1)
        assert loader.labels.min() >= 0
    assert torch.equal(dataset.test_labels, toy_dataset().test_labels)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_val": 0}, "num_val must be at least 1 and below the 40 training samples"),
        ({"num_val": 40}, "got 40"),
        ({"train_limit": 0}, "train_limit must be at least 1, got 0"),
    ],
)
def test_loaders_refuse_senseless_numbers(kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loaders(toy_dataset(), **kwargs)


def test_loader_needs_a_label_for_each_image() -> None:
    with pytest.raises(ValueError, match="3 images but 2 labels"):
        BatchLoader(random_images(3, 1, 2, 2), torch.arange(2), mean=[0.0], std=[1.0])


def row_dataset(kind: str) -> ImageDataset:
    images, labels = random_images(10, 3 if kind == "series" else 1, 1, 7), torch.arange(10) % 2
    return ImageDataset.from_tensors("rows", images, labels, images, labels, kind=kind)


def test_a_series_has_no_rows() -> None:
    dataset = row_dataset("series")
    ((inputs, _),) = make_loaders(dataset).test
    assert inputs.shape == (10, 3, 7)
    expected = (dataset.test_images[:, :, 0] / 255 - torch.tensor(dataset.mean)[:, None]) / (
        torch.tensor(dataset.std)[:, None]
    )
    torch.testing.assert_close(inputs, expected, rtol=1e-5, atol=1e-5)


def test_a_text_is_whole_numbers() -> None:
    dataset = row_dataset("text")
    ((inputs, _),) = make_loaders(dataset).test
    assert inputs.dtype == torch.int64
    assert torch.equal(inputs, dataset.test_images[:, 0, 0].long())


# --- augmentation -------------------------------------------------------------------------------


def test_augmented_images_are_shifts_and_mirrors() -> None:
    torch.manual_seed(0)
    images = random_images(64, 2, 5, 6).clamp(min=1)  # so that zeros are padding
    result = random_crop_and_flip(images, padding=2)
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    padded = torch.nn.functional.pad(images, (2,) * 4)
    seen = set()
    for place, changed in enumerate(result):
        ways = {
            (top, left, flip)
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            if torch.equal(
                changed.flip(-1) if flip else changed,
                padded[place, :, top : top + 5, left : left + 6],
            )
        }
        assert len(ways) == 1
        seen |= ways
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(5))
    assert {flip for _, _, flip in seen} == {False, True}


def test_only_training_images_are_augmented() -> None:
    dataset = toy_dataset()
    plain, augmented = (make_loaders(dataset, augment=augment) for augment in (False, True))
    torch.manual_seed(0)
    assert not torch.equal(next(iter(plain.train))[0], next(iter(augmented.train))[0])
    for part in ("val", "test"):
        first, second = (getattr(loaders, part) for loaders in (plain, augmented))
        assert torch.equal(next(iter(first))[0], next(iter(second))[0])


# --- stratified split ---------------------------------------------------------------------------


@given(data=st.data(), labels=st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_split_is_a_fair_partition(data: st.DataObject, labels: list[int]) -> None:
    num_chosen = data.draw(st.integers(0, len(labels)))
    tensor = torch.tensor(labels)
    others, chosen = stratified_split(tensor, num_chosen, seed=0)
    assert len(chosen) == num_chosen
    assert sorted([*others.tolist(), *chosen.tolist()]) == list(range(len(labels)))
    for label in set(labels):
        share = labels.count(label) * num_chosen / len(labels)
        assert abs(int((tensor[chosen] == label).sum()) - share) < 1


def test_split_does_not_touch_the_global_generator() -> None:
    state = torch.get_rng_state()
    stratified_split(torch.arange(10) % 2, 4, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("num_chosen", [-1, 4])
def test_split_refuses_more_than_there_is(num_chosen: int) -> None:
    with pytest.raises(ValueError, match=f"cannot choose {num_chosen} of 3 samples"):
        stratified_split(torch.zeros(3, dtype=torch.int64), num_chosen, seed=0)


# --- ImageDataset -------------------------------------------------------------------------------


def test_statistics_are_those_of_the_training_part() -> None:
    images, labels = random_images(20, 3, 4, 5), torch.arange(20) % 7
    dataset = ImageDataset.from_tensors("toy", images, labels, images[:2], labels[:2])
    reference = images.double() / 255
    assert dataset.mean == pytest.approx(reference.mean((0, 2, 3)).tolist(), rel=1e-12)
    expected_std = reference.transpose(0, 1).flatten(1).std(1, correction=0).tolist()
    assert dataset.std == pytest.approx(expected_std, rel=1e-12)
    assert dataset.num_classes == 7


def _changed(**changes: object) -> Callable[[], ImageDataset]:
    fields = {**vars(toy_dataset()), **changes}
    return lambda: ImageDataset(**fields)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_changed(train_images=torch.zeros(40, 2, 4, 4)), "train part: images must be uint8"),
        (_changed(train_images=random_images(40, 4, 4)), r"got torch.uint8 \(40, 4, 4\)"),
        (_changed(test_labels=torch.arange(5)), r"test part: labels must be int64 of shape \(6,\)"),
        (_changed(test_labels=torch.zeros(6)), "got torch.float32"),
        (_changed(num_classes=3), "labels must lie in 0 to 2, got 0 to 3"),
        (_changed(test_images=random_images(6, 2, 4, 5)), "but test images"),
        (_changed(mean=(0.5,)), "images have 2 channels, mean has 1"),
        (_changed(kind="text"), "a text has one row, got 4 rows"),
        (_changed(std=(0.5, 0.0)), "std must be positive"),
        (
            _changed(test_images=random_images(0, 2, 4, 4), test_labels=torch.arange(0)),
            "no images",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(make: Callable[[], ImageDataset], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- IDX files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (3, 4, 5), (2, 3, 4, 5), (0,), (0, 4, 5)])
def test_idx_round_trip(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = random_images(*shape)
    (tmp_path / "file").write_bytes(idx_bytes(values))
    assert torch.equal(read_idx(tmp_path / "file", ndim=len(shape)), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx_bytes(random_images(2, 3))[:-1], r"truncated: shape \(2, 3\) makes 18 bytes, .* 17"),
        (idx_bytes(random_images(2, 3)) + b"x", "too long: .* has 19"),
        (idx_bytes(random_images(2, 3))[:7], "truncated: the header has 12 bytes, the file 7"),
        (idx_bytes(random_images(6)), "starts with 00 00 08 01, not 00 00 08 02"),
        (b"\x1f\x8b\x08\x00" + bytes(20), "not an IDX file .* starts with 1f 8b 08 00"),
        (b"", "starts with nothing"),
    ],
    ids=["truncated", "too long", "truncated header", "wrong ndim", "gzip", "empty"],
)
def test_damaged_idx_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "broken-file").write_bytes(content)
    with pytest.raises(ValueError, match=f"broken-file: .*{message}"):
        read_idx(tmp_path / "broken-file", ndim=2)


# --- load_dataset -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"), [("mnist", (28, 28)), ("fashion_mnist", (28, 28)), ("cifar10", (3, 32, 32))]
)
def test_files_become_a_dataset(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    folder = tmp_path / name
    folder.mkdir()
    parts = {}
    for part, num in (("train", 20), ("t10k", 10)):
        parts[part] = random_images(num, *shape), torch.arange(num, dtype=torch.uint8) % 10
        for kind, values in zip(("images", "labels"), parts[part], strict=True):
            path = folder / f"{part}-{kind}-idx{values.ndim}-ubyte"
            path.write_bytes(idx_bytes(values))
    dataset = load_dataset(name, tmp_path)
    assert dataset.name == name
    assert dataset.num_classes == 10
    assert dataset.image_shape == (1, 1, *shape)[-3:]
    assert torch.equal(dataset.train_images.flatten(), parts["train"][0].flatten())
    assert torch.equal(dataset.test_images.flatten(), parts["t10k"][0].flatten())
    assert torch.equal(dataset.test_labels, torch.arange(10))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_missing_files_tell_the_command(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "elsewhere"
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(name, folder)
    assert f"pbcompress zoo fetch {name} --folder {folder}" in str(error.value)


def test_unknown_dataset_names_the_closest() -> None:
    with pytest.raises(ValueError, match="unknown data set 'cifar'; did you mean 'cifar10'"):
        load_dataset("cifar")
