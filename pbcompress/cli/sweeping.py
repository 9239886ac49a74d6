"""The command that runs a recipe at several targets: frontier."""

import argparse
import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbcompress.cli.arguments import Answer, add_command, number
from pbcompress.cli.jobs import add_choices, changes_of
from pbcompress.errors import CompressionError

if TYPE_CHECKING:
    from pbcompress.frontiers.points import Frontier

__all__ = ["add_sweeping"]


def add_sweeping(commands: Any) -> None:
    """Add the command."""
    sweep = add_command(
        commands,
        "frontier",
        _frontier,
        help="run a recipe at several targets, and lay the results side by side",
        description="Run a recipe at several targets instead of its own, each in a folder of its "
        "own in the recipe's. A command that was stopped goes on where it was, and more targets "
        "may be added. As for pbcompress compress, code that the recipe names needs --trust.",
    )
    sweep.add_argument("recipe", help="the TOML file")
    sweep.add_argument(
        "--targets",
        type=number,
        nargs="+",
        required=True,
        metavar="TARGET",
        help="numbers of parameters, or shares in (0, 1)",
    )
    sweep.add_argument(
        "--max-drop",
        type=_loss,
        metavar="LOSS",
        help="also name the smallest network that loses at most so much of the validation metric",
    )
    sweep.add_argument("--plot", type=_picture, help="picture to write: .svg or .png")
    sweep.add_argument(
        "--ray", action="store_true", help="run targets on a Ray cluster, several at a time"
    )
    add_choices(sweep)


def _loss(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{text} is no number from 0")


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"{text} ends in neither .svg nor .png")
    return path


def _frontier(arguments: argparse.Namespace) -> Answer:
    from pbcompress.recipes.recipe import Recipe, sweep_recipe

    changes = changes_of(arguments)
    recipe = Recipe.read(arguments.recipe, trust=arguments.trust, changes=changes)
    found = sweep_recipe(recipe, arguments.targets, executor="ray" if arguments.ray else None)
    if arguments.plot:
        found.plot(arguments.plot)
    parts, facts = [str(found)], found.to_dict()
    if arguments.max_drop is not None:
        facts["smallest"], sentence = _smallest(found, arguments.max_drop)
        parts.append(sentence)
    parts.append(f"Each network has a folder in {recipe.run_dir}, with its report and model.onnx.")
    return Answer("\n\n".join(parts), lambda: facts)


def _smallest(found: "Frontier", max_drop: float) -> tuple[str | None, str]:
    """Return the target that is picked, and a sentence; what was trained is shown even so."""
    try:
        point = found.smallest(max_drop)
    except CompressionError as err:
        return None, str(err)
    lost = f"loses at most {max_drop:g} of {found.metric.name} on validation"
    return point.target, f"The smallest that {lost}: {point.target}, in {point.run_dir}."
