"""Images of a data set as a few small files, for a machine that can fetch nothing.

    python -m scripts.gpu.image_parts cifar10 parts --folder data

Pixels are stored without loss, as differences between neighbours, compressed. All of CIFAR-10 takes
about 100 MiB, seven parts of at most 16 MiB; 24,000 of its training images (`--train 24000`) and
all for test fit into 64 MiB. Copies may come one by one: the reader wants all parts.
"""

import argparse
import hashlib
import json
import lzma
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model_zoo.datasets import ImageDataset, load_dataset
from model_zoo.datasets.split import stratified_split

__all__ = ["pack", "unpack", "write_parts"]

CONTENTS = "contents.json"
PART_BYTES = 16 * 2**20


def pack(images: Tensor) -> bytes:
    """Return uint8 images ``(N, C, H, W)`` in fewer bytes; see `unpack`."""
    pixels = images.numpy().copy()
    if pixels.shape[1] == 3:  # colours differ little
        pixels[:, 0] -= pixels[:, 1]
        pixels[:, 2] -= pixels[:, 1]
    for axis in (2, 3):
        pixels = np.diff(pixels, axis=axis, prepend=np.uint8(0))
    return lzma.compress(pixels.tobytes())


def unpack(content: bytes, shape: Sequence[int]) -> Tensor:
    """Return the images of a `pack`, each of ``shape`` ``(C, H, W)``."""
    pixels = np.frombuffer(lzma.decompress(content), np.uint8).reshape(-1, *shape)
    for axis in (3, 2):
        pixels = np.cumsum(pixels, axis=axis, dtype=np.uint8)
    if pixels.shape[1] == 3:
        pixels[:, 0] += pixels[:, 1]
        pixels[:, 2] += pixels[:, 1]
    return torch.from_numpy(pixels)


def write_parts(dataset: ImageDataset, folder: Path, part_bytes: int = PART_BYTES) -> list[Path]:
    """Write the parts of a data set, and what they are, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    content = bytearray()
    entries = []
    for name in ("train", "test"):
        packed = pack(getattr(dataset, f"{name}_images"))
        labels = getattr(dataset, f"{name}_labels").tolist()
        entries.append({"split": name, "bytes": len(packed), "labels": labels})
        content += packed
    paths = []
    for number, start in enumerate(range(0, len(content), part_bytes)):
        path = folder / f"part-{number:02}"
        path.write_bytes(content[start : start + part_bytes])
        paths.append(path)
    about = {
        "name": dataset.name,
        "shape": dataset.image_shape,
        "parts": len(paths),
        "sha256": hashlib.sha256(content).hexdigest(),
        "entries": entries,
    }
    (folder / CONTENTS).write_text(json.dumps(about))
    return paths


def read_parts(folder: Path) -> ImageDataset:
    """Return the data set that `write_parts` wrote.

    Raises:
        ValueError: A part is missing or damaged.
    """
    about = json.loads((folder / CONTENTS).read_text())
    paths = sorted(folder.glob("part-*"))
    content = b"".join(path.read_bytes() for path in paths)
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise ValueError(f"{folder}: {len(paths)} of {about['parts']} parts, or a damaged one")
    tensors = []
    for entry in about["entries"]:
        packed, content = content[: entry["bytes"]], content[entry["bytes"] :]
        tensors += [unpack(packed, about["shape"]), torch.tensor(entry["labels"])]
    return ImageDataset.from_tensors(about["name"], *tensors)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the parts of one data set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("parts", type=Path, help="folder to write")
    parser.add_argument("--folder", default="data", help="where the data sets are")
    parser.add_argument(
        "--train", type=int, help="number of training images, classes in proportion"
    )
    options = parser.parse_args(argv)
    dataset = load_dataset(options.name, options.folder)
    train = (dataset.train_images, dataset.train_labels)
    if options.train is not None:
        _, kept = stratified_split(dataset.train_labels, options.train, seed=0)
        train = (train[0][kept], train[1][kept])
    test = (dataset.test_images, dataset.test_labels)
    for path in write_parts(ImageDataset.from_tensors(options.name, *train, *test), options.parts):
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
