"""The pages of the command line and of recipes, from the parser and the configurations.

python -m scripts.front.reference docs/reference
"""

import argparse
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pbcompress as pb
from pbcompress.cli.main import make_parser

__all__ = ["command_line", "recipe"]

ABOUT = """\
# Command line

Every command takes `--json`: it prints JSON and nothing else on the standard output stream.
Progress and errors go to the standard error stream. Exit codes: 0 it worked, 1 the job failed and
one line says why, 2 wrong usage.

Your code is named as `package.module:function` and is imported from the current folder. A recipe
runs the code that it names only with `--trust PACKAGE`; see [security](../../SECURITY.md).
"""
INTRO = """\
# Recipes

A recipe is a TOML file for `pbcompress compress`. `pbcompress init` writes one for your network,
and `--set KEY=VALUE` changes one value of it, for instance `--set compress.recovery.epochs=5`.

## `[model]`

| key | what it is |
| --- | --- |
| `build` | `"package.module:function"` that returns the network |
| `arguments` | a table of what it is called with |
| `weights` | a safetensors file, or a `.pt` file of a state dict; without it `[train]` makes them |

## `[data]`

| key | what it is |
| --- | --- |
| `build` | `"package.module:function"`; its result has `train`, `val` and perhaps `test` |
| `arguments` | a table of what it is called with |

## `[compress]`

| key | default | what it is |
| --- | --- | --- |
| `target_params` | | a share of the original's parameters, or a count |
| `run_dir` | | folder to write to; the same command goes on there |
| `seed` | 0 | of everything random |
| `control` | false | also train plain width to the end, to compare |

## `[export]`

| key | what it is |
| --- | --- |
| `quantize` | `"int8"` or `"fp16"`: also write `RUN_DIR/model.int8.onnx`, if it is worth it |
| `max_drop` | how much worse the validation metric may be |
| `recover_epochs` | epochs of training with rounding, if int8 does not pass |
"""
TABLES = {
    "[train] and [compress.recovery]": pb.RecoveryConfig(),
    "[train.optimizer] and [compress.recovery.optimizer]": pb.OptimizerConfig(),
    "[train.engine] and [compress.recovery.engine]": pb.EngineConfig(),
    "[compress.recovery.distillation]": pb.DistillationConfig(),
    "[compress.width]": pb.WidthConfig(),
    "[compress.dendrites]": pb.CompressConfig().dendrites,
}


def command_line() -> str:
    """Return the page of the command line."""
    parts = [ABOUT]
    for path, parser in _commands(make_parser(), ()):
        help_text = parser.format_help().rstrip()
        parts.append(f"## {' '.join(path)}\n\n```text\n{help_text}\n```\n")
    return "\n".join(parts)


def _commands(
    parser: argparse.ArgumentParser, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not inner:
        yield path, parser
    for action in inner:
        for name, own in action.choices.items():
            yield from _commands(own, (*path, name))


def recipe() -> str:
    """Return the page of recipes."""
    parts = [INTRO]
    for title, values in TABLES.items():
        rows = [f"## `{title}`\n\n| key | default | what it is |\n| --- | --- | --- |"]
        told = _arguments(type(values))
        for field in dataclasses.fields(values):
            value = getattr(values, field.name)
            inner = dataclasses.is_dataclass(value)
            shown = f"{type(value).__name__}()" if inner else _toml(value)
            text = told[field.name].replace("|", "\\|").replace("``", "`")
            rows.append(f"| `{field.name}` | {shown} | {text} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _toml(value: object) -> str:
    words = {None: "left out", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _arguments(cls: type) -> dict[str, str]:
    """Return what a docstring says of each argument."""
    doc = inspect.getdoc(cls) or ""
    args = doc.partition("Args:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", args, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "cli.md").write_text(command_line())
    (folder / "recipe.md").write_text(recipe())
