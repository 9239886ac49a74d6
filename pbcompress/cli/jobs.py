"""The commands that train: demo, compress, and init, which writes a recipe for them."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbcompress.cli.arguments import (
    MODEL_HELP,
    Answer,
    add_command,
    add_inputs,
    add_trust,
    inputs_of,
    network_named,
    number,
)
from pbcompress.errors import CompressionError

if TYPE_CHECKING:
    from pbcompress.recipes.recipe import Recipe
    from pbcompress.result import CompressionResult

__all__ = ["add_changes", "add_choices", "add_jobs", "changes_of", "run"]


def add_jobs(commands: Any) -> None:
    """Add the commands."""
    demo = add_command(
        commands,
        "demo",
        _demo,
        help="compress a small network on embedded real data (about a minute, no download)",
        description="Train a small convolutional network on scikit-learn's handwritten digits, "
        "compress it to 25 % of its parameters, and write model, report and run to a folder.",
    )
    demo.add_argument("--out", default="demo", help="folder to write to (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of everything (default: 0)")

    init = add_command(
        commands,
        "init",
        _init,
        help="write a recipe for your network, with comments",
        description="Write a recipe, a TOML file for pbcompress compress, with a comment on every "
        "choice. The network is built and counted first, so that a mistake shows now.",
    )
    init.add_argument("model", help=MODEL_HELP)
    add_inputs(init, required=False)
    init.add_argument(
        "--data",
        default="my_package:make_data",
        metavar="FUNCTION",
        help="package.module:function that makes data with train, val and perhaps test batches "
        "(default: a name to replace)",
    )
    init.add_argument("--weights", help="its trained weights: .safetensors, or .pt of a state dict")
    init.add_argument("--target", type=number, default=0.25, help="parameters (default: 0.25)")
    init.add_argument("--out", type=Path, default=Path("recipe.toml"), help="default: %(default)s")

    job = add_command(
        commands,
        "compress",
        _compress,
        help="run a recipe: network, data, target and choices in one TOML file",
        description="Run a recipe. A run that was stopped goes on where it was. pbcompress init "
        "writes a recipe for your network. A recipe runs the code that it names: without --trust "
        "only what comes with pbcompress, and layers of torch.nn.",
    )
    job.add_argument("recipe", help="the TOML file")
    add_changes(job)


def add_changes(parser: argparse.ArgumentParser) -> None:
    """Add the options that change a recipe, and how it is run."""
    parser.add_argument("--target", type=number, help="parameters, instead of the recipe's")
    parser.add_argument(
        "--dry-run", action="store_true", help="plan and say what would be done; train nothing"
    )
    add_choices(parser)


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Add the options that change all of a recipe but its target."""
    parser.add_argument("--run-dir", help="folder to write to, instead of the recipe's")
    parser.add_argument("--seed", type=int, help="seed, instead of the recipe's")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one choice, e.g. compress.recovery.epochs=5; repeat it",
    )
    add_trust(parser)


def changes_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the options change in a recipe, by dotted key."""
    from pbcompress.recipes.changes import value_of

    changes = {}
    for text in arguments.set:
        key, is_there, value = text.partition("=")
        if not is_there:
            raise CompressionError(
                f"--set {text} has no value. Write --set KEY=VALUE, e.g. --set train.epochs=5."
            )
        changes[key.strip()] = value_of(value)
    named = {
        "compress.target_params": getattr(arguments, "target", None),
        "compress.seed": arguments.seed,
        "compress.run_dir": arguments.run_dir,
    }
    return changes | {key: value for key, value in named.items() if value is not None}


def _demo(arguments: argparse.Namespace) -> Answer:
    import torch

    from pbcompress.core.records import to_data
    from pbcompress.recipes.demo import run_demo

    torch.set_num_threads(1)  # faster than two for so small a network
    folder = Path(arguments.out)
    print(
        "Training a small network on 1,797 real handwritten digits, then compressing it to 25 %.",
        file=sys.stderr,
    )
    result = run_demo(folder, seed=arguments.seed)
    return Answer(
        f"\n{result}\n\nLook next at {folder / 'report.html'} (the report) and "
        f"{folder / 'model.onnx'} (the\nnetwork that ships, proven equal). For your own network: "
        "pbcompress init --help.",
        lambda: {"run_dir": str(folder), **to_data(result.facts())},
    )


def _init(arguments: argparse.Namespace) -> Answer:
    from pbcompress.costs.measured import measure
    from pbcompress.recipes.template import write_recipe

    network = network_named(arguments.model)
    if isinstance(network, Path):
        raise CompressionError(
            f"{network} is an ONNX file; a recipe is for a torch network. Name a function that "
            "builds it: package.module:function."
        )
    params = sum(parameter.numel() for parameter in network.parameters())
    if arguments.input:  # also shows whether the network runs
        params = measure(network, inputs_of(arguments)).params
    write_recipe(
        arguments.out,
        model=arguments.model,
        data=arguments.data,
        params=params,
        target=arguments.target,
        weights=arguments.weights,
    )
    package = arguments.model.partition(":")[0].partition(".")[0]
    command = f"pbcompress compress {arguments.out} --trust {package}"
    return Answer(
        f"Wrote {arguments.out}, for a network of {params:,} parameters. Look through it, then "
        f"try: {command} --dry-run",
        lambda: {"recipe": str(arguments.out), "params": params, "command": command},
    )


def _compress(arguments: argparse.Namespace) -> Answer:
    from pbcompress.recipes.recipe import Recipe

    changes = changes_of(arguments)
    recipe = Recipe.read(arguments.recipe, trust=arguments.trust, changes=changes)
    return run(recipe, is_dry=arguments.dry_run)[0]


def run(recipe: "Recipe", *, is_dry: bool) -> "tuple[Answer, CompressionResult | None]":
    """Run a recipe, or only plan it."""
    from pbcompress.core.records import to_data
    from pbcompress.recipes.recipe import export_result, plan_recipe, run_recipe

    if is_dry:
        preview = plan_recipe(recipe)
        return Answer(str(preview), preview.to_dict), None
    result = run_recipe(recipe)
    exported = export_result(recipe, result) if recipe.export else None
    parts = [str(result), *([str(exported)] if exported else [])]
    parts.append(f"Look next at {Path(recipe.run_dir) / 'report.html'}.")
    facts = {"run_dir": recipe.run_dir, "export": exported.to_dict() if exported else None}
    return Answer("\n\n".join(parts), lambda: facts | to_data(result.facts())), result
