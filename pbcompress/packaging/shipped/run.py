"""Run the network of this folder on arrays, or without any on random numbers."""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

FOLDER = Path(__file__).resolve().parent


def run(config: Any, model: str, arrays: Any) -> Any:
    session = onnxruntime.InferenceSession(str(FOLDER / model), providers=["CPUExecutionProvider"])
    inputs = zip(config["inputs"], arrays, strict=True)
    return session.run(None, {entry["name"]: np.asarray(a, entry["type"]) for entry, a in inputs})


def check() -> None:
    for line in (FOLDER / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        path = FOLDER / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            sys.exit(f"{name} is missing or is not what was shipped. Get it again.")
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    sample = np.load(FOLDER / "sample.npz")
    for model, facts in config["models"].items():
        found = run(config, model, [sample[f"input_{i}"] for i in range(len(config["inputs"]))])
        for i, output in enumerate(found):
            wanted = sample[f"output_{i}"].astype(float)
            near = facts["tolerance"] * np.abs(wanted).max()
            if output.shape != wanted.shape or not np.abs(output - wanted).max() <= near:
                sys.exit(f"Output {i} of {model} is not that of sample.npz, within {near:.1e}.")
        print(f"{model}: the files are whole, and it computes what it should.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arrays", nargs="*", metavar="INPUT.npy", help="as in config.json")
    parser.add_argument("--model", default="model.onnx", help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="are the files whole, and right here?")
    arguments = parser.parse_args()
    if arguments.check:
        return check()
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
