"""The command that packages a run for the network's users."""

import argparse
from pathlib import Path
from typing import Any

from pbcompress.cli.arguments import Answer, add_command
from pbcompress.errors import CompressionError

__all__ = ["add_package"]


def add_package(commands: Any) -> None:
    """Add ``pbcompress package``."""
    package = add_command(
        commands,
        "package",
        _package,
        help="a folder to give away: ONNX files, runners, model card, checksums and a check",
        description="Write a folder from which anyone can run the network of a finished run, in "
        "Python or JavaScript, with a model card for the Hugging Face Hub. The folder takes its "
        "place after its own check has passed: python run.py --check.",
    )
    package.add_argument("run_dir", help="folder of a finished run")
    package.add_argument("out_dir", nargs="?", help="default: RUN_DIR/package")
    package.add_argument("--name", help="of the network (default: that of the folder)")
    package.add_argument("--license", help='as the Hub writes it, e.g. "apache-2.0"')
    package.add_argument("--task", help='as the Hub writes it, e.g. "image-classification"')
    for word, meaning in (("dataset", "a data set of the training"), ("tag", "a further tag")):
        package.add_argument(f"--{word}", action="append", default=[], help=f"{meaning}; repeat it")
    package.add_argument("--classes", type=Path, help="file with the name of one class a line")
    package.add_argument("--preprocessing", help="what is done to an input, in words")
    package.add_argument("--intended-use", help="what it is for, in words")
    package.add_argument("--overwrite", action="store_true", help="replace a package")


def _package(arguments: argparse.Namespace) -> Answer:
    from pbcompress.packaging.folder import package
    from pbcompress.packaging.model_card import CardConfig

    card = CardConfig(
        license=arguments.license,
        task=arguments.task,
        datasets=tuple(arguments.dataset),
        tags=tuple(arguments.tag),
        classes=_lines(arguments.classes),
        preprocessing=arguments.preprocessing,
        intended_use=arguments.intended_use,
    )
    packed = package(
        arguments.run_dir,
        arguments.out_dir,
        card,
        name=arguments.name,
        overwrite=arguments.overwrite,
    )
    return Answer(
        f"{packed}\n\nRead {Path(packed.path) / 'README.md'}, then give the folder away.",
        lambda: {
            "path": packed.path,
            "files": dict(packed.files),
            "models": {name: dict(facts) for name, facts in packed.models.items()},
        },
    )


def _lines(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as err:
        raise CompressionError(f"The classes {path} cannot be read: {err}.") from err
