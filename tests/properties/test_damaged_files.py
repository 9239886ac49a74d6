"""Files that were damaged or changed on purpose, for every reader: a whole file or a sentence.

A sentence is a `CompressionError` of few words in one line; the commands print it and return 1. No
other error comes out, whatever bytes or values are there. A value is changed beneath a SHA-256 that
fits, as who wants to harm would change it.
"""

import hashlib
import json
import random
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pbcompress as pb
from pbcompress.cli.main import main
from pbcompress.core.json_documents import with_digest
from pbcompress.core.tensor_files import read_tensors, write_tensors
from pbcompress.onnx_files.contents import facts_of, measure_onnx, metadata_of
from pbcompress.recipes.recipe import Recipe
from pbcompress.recipes.zoo import Entry
from pbcompress.recovery.checkpoint import Checkpoint
from pbcompress.runs.resumption import read_plan, read_rate, write_plan, write_rate
from pbcompress.runs.run_folder import read_run
from pbcompress.runs.sample import read_sample
from tests.support.changed_json import places, rewrite

HOSTILE: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, 10**400, 1e308, float("nan"), float("-inf"), "", "x" * 5000,
    "a\0b", "../..", [], {}, [[]], [None], {"kind": 1}, {"": {}}, "[" * 5000,
]  # fmt: skip
NOISE = [b"", b"\0", b"[" * 3000, b"{", b'"', b"\xff\xfe", b"1e999", b"NaN", b"null", b"-", b"]"]
RECIPE = """
[model]
build = "torch.nn:Linear"
arguments = {in_features = 8, out_features = 3}
[data]
build = "builtins:dict"
[train]
epochs = 1
[compress]
target_params = 0.5
run_dir = "r"
seed = 0
[compress.recovery]
epochs = 2
"""


def make_network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    x = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
    return [(x, x[:, :3].argmax(1))]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every kind of file that is written."""
    folder = tmp_path_factory.mktemp("damaged") / "run"
    torch.manual_seed(0)
    config = pb.CompressConfig(
        dendrites=pb.DendriteConfig(max_sets=0), recovery=pb.RecoveryConfig(epochs=2)
    )
    data = pb.Data(train=batches(), val=batches())
    result = pb.compress(
        make_network(), 0.6, data=data, config=config, run_dir=folder, progress=False
    )
    result.save_spec(folder / "spec.safetensors")
    (folder / "plan.json").write_text(result.plan.to_json())
    (folder / "recipe.toml").write_text(RECIPE)
    write_plan(folder / "kept_plan.json", "x", result.plan)
    write_rate(folder / "rate.json", "x", 0.01)
    return folder


def command(*words: object) -> None:
    """Run a command, which must return 0, or 1 after one line; raise what it said."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(word) for word in words])
    lines = err.getvalue().strip().splitlines()
    assert code in (0, 1)
    if code:
        assert len(lines) == 1, lines
        raise pb.CompressionError(lines[0])


def checkpoint_of(file: Path) -> None:
    Checkpoint(file, "x").read(torch.device("cpu"))


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "state": ("state.json", lambda f: read_run(f.parent)),
    "state of a network": ("state.json", lambda f: pb.load(f.parent, make_network)),
    "state by a command": (
        "state.json",
        lambda f: command("report", f.parent, "--out", f.parent / "r.md"),
    ),
    "history": ("history.jsonl", lambda f: read_run(f.parent)),
    "history by a command": (
        "history.jsonl",
        lambda f: command("report", f.parent, "--out", f.parent / "r.md"),
    ),
    "weights": ("weights.safetensors", lambda f: pb.load(f.parent, make_network)),
    "sample": ("sample.safetensors", read_sample),
    "spec": ("spec.safetensors", pb.load_spec),
    "checkpoint": ("checkpoints/width.safetensors", checkpoint_of),
    "plan": ("plan.json", lambda f: pb.WidthPlan.from_json(f.read_bytes())),
    "plan of a run": ("kept_plan.json", lambda f: read_plan(f, "x")),
    "learning rate": ("rate.json", lambda f: read_rate(f, "x")),
    "recipe": ("recipe.toml", Recipe.read),
    "recipe by a command": ("recipe.toml", lambda f: command("compress", f)),
    "result of a recipe": ("result.json", lambda f: Entry(f.parent).result()),
    "ONNX": ("model.onnx", lambda f: (facts_of(f), metadata_of(f))),
    "ONNX by a command": ("model.onnx", lambda f: command("measure", f)),
    "ONNX measured": ("model.onnx", measure_onnx),
}


def noisy(content: bytes, chance: random.Random) -> bytes:
    """Return bytes with a bit, a piece or the end changed."""
    if not content:  # a change before left nothing
        return chance.choice(NOISE)
    place = chance.randrange(len(content))
    way = chance.randrange(5)
    if way == 0:
        return content[:place]
    if way == 1:
        bit = bytes([content[place] ^ 1 << chance.randrange(8)])
        return content[:place] + bit + content[place + 1 :]
    if way == 2:
        return content[:place] + chance.choice(NOISE) + content[place:]
    if way == 3:
        return content[:place] + content[place + chance.randrange(1, 60) :]
    return content[:place] + chance.choice(NOISE) + content[place + 1 :]


def with_value(data: Any, chance: random.Random) -> Any:
    """Return JSON data with one value changed, gone, or put beside another."""
    data = json.loads(json.dumps(data))
    at = chance.choice(list(places(data)))
    holder = data
    for key in at[:-1]:
        holder = holder[key]
    way = chance.randrange(4)
    if way == 0:
        del holder[at[-1]]
    elif way == 1 and isinstance(holder, dict):
        holder[chance.choice(["x", "a.b", "__class__", "", "kind"])] = chance.choice(HOSTILE)
    else:
        holder[at[-1]] = chance.choice(HOSTILE)
    return data


def mutate(file: Path, chance: random.Random) -> None:
    """Change a file: its bytes, or a value within it beneath a digest that fits."""
    content = file.read_bytes()
    if chance.random() < 0.4:
        file.write_bytes(noisy(content, chance))
    elif file.suffix == ".json":
        data = json.loads(content)
        data.pop("sha256_of_content", None)
        changed = with_value(data, chance)
        file.write_text(json.dumps(with_digest(changed)))
    elif file.suffix == ".jsonl":
        lines = [json.loads(line) for line in content.splitlines()]
        file.write_text("".join(json.dumps(r) + "\n" for r in with_value(lines, chance)))
        noted = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
        rewrite(file.with_name("state.json"), lambda state: state.update(files=noted))
    elif file.suffix == ".safetensors" and chance.random() < 0.8:
        tensors, state = read_tensors(file)
        write_tensors(file, tensors, with_value(state, chance))
    elif file.suffix == ".safetensors":
        size = struct.unpack("<Q", content[:8])[0]
        header = json.dumps(with_value(json.loads(content[8 : 8 + size]), chance)).encode()
        file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
    else:
        file.write_bytes(noisy(noisy(content, chance), chance))


def outcomes(
    run_dir: Path, folder: Path, count: int, first: int, names: list[str]
) -> Iterator[tuple[str, str]]:
    """Damage a file for each seed, and yield which reader it was for and what came of it."""
    zoo = Path(__file__).parents[2] / "model_zoo" / "recipes" / "digits"
    for name in ("whole", "without a model"):  # reports would time it
        shutil.copytree(run_dir, folder / name)
        shutil.copy(zoo / "result.json", folder / name)
    (folder / "without a model" / "model.onnx").unlink()
    for seed in range(first, first + count):
        chance = random.Random(seed)
        name = names[seed % len(names)]
        path, read = READERS[name]
        target = folder / ("whole" if "ONNX" in name else "without a model")
        for file in (path, "state.json"):  # what a change before may have touched
            source = zoo if file == "result.json" else run_dir
            (target / file).write_bytes((source / file).read_bytes())
        mutate(target / path, chance)
        try:
            read(target / path)
            yield name, "read"
        except pb.CompressionError as err:
            said = str(err)
            is_plain = len(said) < 2500 and said.isprintable()
            yield name, "refused" if is_plain else f"in too many words: {seed}"
        except BaseException as err:
            raise AssertionError(f"seed {seed}, {name}: {type(err).__name__}: {err}") from err


QUICK = [name for name in READERS if "command" not in name]


def test_every_reader_reads_a_damaged_file_or_says_why_not(run_dir: Path, tmp_path: Path) -> None:
    assert len(READERS) == 18
    found = Counter(what for _, what in outcomes(run_dir, tmp_path, 60, 0, QUICK))
    assert found["refused"] > 20
    assert found["refused"] + found["read"] == 60


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_raw_error_in_five_thousand_changes_of_every_reader(
    run_dir: Path, tmp_path: Path
) -> None:
    found = Counter(outcomes(run_dir, tmp_path, 5000 * len(READERS), 1000, list(READERS)))
    assert sum(found.values()) == 5000 * len(READERS)
    assert {what for _, what in found} == {"read", "refused"}
    assert all(found[name, "refused"] > 1000 for name in READERS)


@pytest.mark.parametrize(
    "name",
    [
        "state",
        "weights",
        "sample",
        "spec",
        "checkpoint",
        "plan",
        "plan of a run",
        "ONNX",
        "history",
        "learning rate",
    ],
)
def test_a_bit_that_flips_is_noticed_or_changes_nothing(
    name: str, run_dir: Path, tmp_path: Path
) -> None:
    path, read = READERS[name]
    target = Path(shutil.copytree(run_dir, tmp_path / "run"))
    content, chance = (target / path).read_bytes(), random.Random(0)
    whole = _seen(path, target)
    for _ in range(40):
        place = chance.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << chance.randrange(8)
        (target / path).write_bytes(bytes(changed))
        try:
            read(target / path)
        except pb.CompressionError:
            continue
        assert _seen(path, target) == whole, place


def _seen(path: str, folder: Path) -> object:
    """Return all that a file tells."""
    file = folder / path
    if path.endswith(".safetensors"):
        tensors, state = read_tensors(file)
        return state, {name: t.double().tolist() for name, t in tensors.items()}
    if path.endswith(".onnx"):
        cost = measure_onnx(file)
        return cost.params, cost.flops, dict(facts_of(file).operations)
    if path.endswith(".jsonl"):
        return read_run(folder)[1]
    data = json.loads(file.read_bytes())
    return {k: v for k, v in data.items() if k != "sha256_of_content"}
