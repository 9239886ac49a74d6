"""Run the network of this folder on arrays, or without any on random numbers."""

import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120
sys.path = [p for p in sys.path if os.path.realpath(p) != HERE]  # nothing here is a module

import argparse  # noqa: E402
import contextlib  # noqa: E402
import hashlib  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import threading  # noqa: E402
import zipfile  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402

FOLDER = Path(HERE)
SUMS = "SHA256SUMS"
TOLERANCE = 0.5  # of the largest output, for any precision
MOST_BYTES = 2**30  # of the sample
MOST_SECONDS = 300.0  # of a check
MOST_MEMORY = 2**33  # of a check, and four times the files


def run(config: Any, model: str, arrays: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(FOLDER / model), options, providers=providers)
    inputs = zip(config["inputs"], arrays, strict=True)
    return session.run(None, {entry["name"]: np.asarray(a, entry["type"]) for entry, a in inputs})


def check_files() -> None:
    """Exit unless the sums name every file of this folder and no other, and all are whole."""
    lines = (FOLDER / SUMS).read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    there = {path.name for path in FOLDER.iterdir()} - {SUMS}
    for name in sorted(sums.keys() | there):
        path = FOLDER / name
        if name not in there:
            what = "is missing or is not what was shipped"
        elif name not in sums or path.is_symlink() or not path.is_file():
            what = f"is not one of the files that {SUMS} names"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != sums[name]:
            what = "is missing or is not what was shipped"
        else:
            continue
        sys.exit(f"{name!r} {what}. Get the package again.")
    missing = {"config.json", "sample.npz", Path(__file__).name} - there
    if missing:
        sys.exit(f"{min(missing)} is missing or is not what was shipped. Get the package again.")


def read_sample() -> dict[str, Any]:
    """Return the arrays of the sample, which are stored as they are."""
    with zipfile.ZipFile(FOLDER / "sample.npz") as archive:
        held = archive.infolist()
        if any(i.compress_type or i.file_size > MOST_BYTES or i.flag_bits & 1 for i in held):
            sys.exit("sample.npz is packed, or too large. Get the package again.")
        for entry in held:
            with archive.open(entry) as file:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                if math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
                    sys.exit(f"{entry.filename} of sample.npz has another size than it says.")
    with np.load(FOLDER / "sample.npz", allow_pickle=False) as sample:
        arrays = {name: sample[name] for name in sample.files}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub" or not array.size or not np.isfinite(array).all():
            sys.exit(f"{name} of sample.npz has numbers that are not finite, or none.")
    return arrays


def limit(memory: int) -> threading.Timer:
    """End this process after a time; on Linux, let it take so many bytes more and no more."""

    def end() -> None:
        os.write(2, b"The check takes too long. Do not use this package.\n")
        os._exit(1)

    timer = threading.Timer(MOST_SECONDS, end)
    timer.daemon = True
    timer.start()
    with contextlib.suppress(ImportError, OSError, ValueError):  # other systems have no such limit
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most, space = pages * os.sysconf("SC_PAGE_SIZE") + memory, resource.RLIMIT_AS
        resource.setrlimit(space, (most, resource.getrlimit(space)[1]))
    return timer


def check() -> None:
    """Exit unless this folder is whole, and its models compute here what they should."""
    check_files()
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    models = {path.name for path in FOLDER.glob("*.onnx")}
    if not models or set(config["models"]) != models or not config["outputs"]:
        sys.exit("config.json does not name the models of this folder. Get the package again.")
    sample = read_sample()
    for model, facts in config["models"].items():
        if not 0 < float(facts["tolerance"]) <= TOLERANCE:
            sys.exit(f"config.json lets {model} be {facts['tolerance']} off, above {TOLERANCE}.")
        found = run(config, model, [sample[f"input_{i}"] for i in range(len(config["inputs"]))])
        if len(found) != len(config["outputs"]):
            sys.exit(f"{model} has {len(found)} outputs. Get the package again.")
        for i, output in enumerate(found):
            wanted = sample[f"output_{i}"].astype(float)
            near = facts["tolerance"] * np.abs(wanted).max()
            if output.shape != wanted.shape or not np.abs(output - wanted).max() <= near:
                sys.exit(f"Output {i} of {model} is not that of sample.npz, within {near:.1e}.")
        print(f"{model}: the files are whole, and it computes what it should.")
    print("This proves that the package is whole, not who made it: see README.md.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arrays", nargs="*", metavar="INPUT.npy", help="as in config.json")
    parser.add_argument("--model", default="model.onnx", help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="are the files whole, and right here?")
    arguments = parser.parse_args()
    if arguments.check:
        timer = limit(MOST_MEMORY + 4 * sum(path.stat().st_size for path in FOLDER.iterdir()))
        try:
            return check()
        except Exception as err:  # a damaged file may be wrong in any way
            words = " ".join(f"{type(err).__name__}: {err}".split())
            sys.exit(f"The package is damaged ({words:.300}). Get it again.")
        finally:
            timer.cancel()
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    sizes = [[n if isinstance(n, int) else 1 for n in e["shape"]] for e in config["inputs"]]
    arrays = [np.load(path) for path in arguments.arrays] or [np.random.rand(*s) for s in sizes]
    for entry, output in zip(config["outputs"], run(config, arguments.model, arrays), strict=True):
        print(f"{entry['name']}, shape {output.shape}:\n{output}")
        if output.ndim == 2:
            classes = config["classes"] or range(output.shape[1])
            print("top-1:", *(classes[i] for i in output.argmax(1)))


if __name__ == "__main__":
    main()
