"""Calls of every operation that a network without source code may make, with hostile arguments.

Run as a module in a process of its own, which notes every call before it makes it: a call that
kills the process is the last one noted.

    python -m tests.support.spec_fuzz FIRST LAST NOTE_FILE
"""

import json
import random
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch

from pbcompress.export.spec_arguments import DTYPES, check_call, check_sizes
from pbcompress.export.spec_operations import ATEN, operation

NAMES = sorted(ATEN)
SMALL = [0, 1, 1, 2, 2, 3, 4, 5, 8]
HUGE = [-(2**63), -(2**31), -7, -2, -1, 100, 65536, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1]
STRANGE = [None, True, "x", "same", -1, 1.5, float("nan"), float("inf"), [], [None], {}, 2**70]
WORDS = ["same", "valid", "floor", "trunc", "none", "tanh", "constant", "reflect", "circular"]
EQUATIONS = ["ij,jk->ik", "bi,bj->bij", "...i,...i", "ii->i", "->", "i,->", "ab,cd,ef->", "(", "i"]
FORMATS = [torch.contiguous_format, torch.preserve_format, torch.channels_last]
MOST_BYTES = 2**24  # of what is really computed


class Calls:
    """Makes calls from a seed: plausible in most arguments, hostile in some."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.form = operation(f"aten.{NAMES[seed % len(NAMES)]}")
        self.shape = self._sizes(self.chance.choice([0, 1, 2, 2, 3, 3, 4, 4, 5]))
        self.hostility = self.chance.choice([0.0, 0.05, 0.2, 0.6])

    def _sizes(self, rank: int) -> list[int]:
        return [self.chance.choice(SMALL) for _ in range(rank)]

    def call(self) -> tuple[list[object], dict[str, object]]:
        args, kwargs = [], {}
        for argument in self.form._schema.arguments:
            if argument.has_default_value() and self.chance.random() < 0.4:
                if argument.kwarg_only:
                    continue
                value = argument.default_value
            else:
                value = self._value(argument.name, str(argument.real_type))
            if argument.kwarg_only:
                kwargs[argument.name] = value
            else:
                args.append(value)
        return args, kwargs

    def _value(self, name: str, kind: str) -> object:
        if self.chance.random() < self.hostility * 0.3:
            return self.chance.choice(STRANGE)
        if kind.startswith("Optional["):
            return None if self.chance.random() < 0.5 else self._value(name, kind[9:-1])
        if kind.startswith("List["):
            count = len(self.shape) if self.chance.random() < 0.4 else self.chance.randrange(6)
            return [self._value(name, kind[5:-1]) for _ in range(count)]
        if name == "other" and self.chance.random() < 0.3:
            return self._number()
        return getattr(self, f"_{kind.lower()}", self._int)()

    def _tensor(self) -> torch.Tensor:
        shape = list(self.shape)
        if self.chance.random() < 0.4:
            shape = self._sizes(self.chance.randrange(6))
        elif shape and self.chance.random() < 0.4:
            shape[self.chance.randrange(len(shape))] = self.chance.choice(SMALL)
        names = ["float32"] * 6 + ["int64"] * 2 + list(DTYPES)
        tensor = torch.zeros(shape, dtype=DTYPES[self.chance.choice(names)])
        if self.chance.random() < 0.3:
            tensor.fill_(self.chance.choice([1, 2, 100]))
        return tensor.t() if tensor.dim() == 2 and self.chance.random() < 0.2 else tensor

    def _int(self) -> int:
        if self.chance.random() < self.hostility:
            return self.chance.choice(HUGE)
        return self.chance.choice([-2, -1, 0, 0, 1, 1, 1, 2, 2, 3, 4])

    def _float(self) -> float:
        return self.chance.choice([0.0, 0.5, 1.0, 2.0, -1.0, 1e-5, 1e30, float("inf")])

    def _number(self) -> object:
        return self.chance.choice([self._int(), self._float(), True])

    def _bool(self) -> bool:
        return self.chance.random() < 0.5

    def _str(self) -> str:
        return self.chance.choice(EQUATIONS if "einsum" in str(self.form) else WORDS)

    def _scalartype(self) -> object:
        return self.chance.choice([*DTYPES.values(), torch.complex64, torch.quint8, 6, -1])

    def _layout(self) -> object:
        return self.chance.choice([torch.strided, torch.strided, torch.sparse_coo, 3])

    def _device(self) -> object:
        return self.chance.choice([torch.device("cpu"), torch.device("cuda")])

    def _memoryformat(self) -> object:
        return self.chance.choice([*FORMATS, torch.channels_last_3d, -1])


def on(device: str, value: object) -> object:
    """Return arguments with their tensors, and the device, elsewhere."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [on(device, part) for part in value]
    if isinstance(value, dict):
        return {name: on(device, part) for name, part in value.items()}
    return torch.device(device) if value == torch.device("cpu") else value


def stretched(seed: int, value: object) -> object:
    """Return arguments with tensors that no memory holds, for the run on shapes alone."""
    chance = random.Random(seed)
    if isinstance(value, torch.Tensor) and value.dim() and chance.random() < 0.5:
        shape = list(value.shape)
        shape[chance.randrange(len(shape))] = chance.choice([2**20, 2**31, 2**33])
        return torch.empty(shape, dtype=value.dtype, device=value.device)
    if isinstance(value, list):
        return [stretched(seed + i, part) for i, part in enumerate(value)]
    return value


def attempt(seed: int) -> str:
    """Make one call as `load_spec` and a run after it would; return what came of it."""
    calls = Calls(seed)
    args, kwargs = calls.call()
    meta = on("meta", args), on("meta", kwargs)
    if seed % 4 == 0:
        meta = stretched(seed, meta[0]), meta[1]
    try:
        check_call(calls.form, *meta, torch.device("meta"))
    except ValueError:
        return "refused"
    try:
        size = check_sizes(calls.form(*meta[0], **meta[1]))[1]
    except Exception:
        return "torch refused its shapes"
    if seed % 4 == 0 or size > MOST_BYTES:
        return "ran on shapes"
    check_call(calls.form, args, kwargs, torch.device("cpu"))
    try:
        calls.form(*args, **kwargs)
    except Exception:
        return "torch refused its numbers"
    return "ran"


def main(first: int, last: int, note: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: Counter[str] = Counter()
    with note.open("w") as file, torch.no_grad():
        for seed in range(first, last):
            file.seek(0)
            file.write(f"{seed:12d}")
            file.flush()
            found[attempt(seed)] += 1
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
