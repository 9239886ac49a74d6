"""A run of `compress` as a TOML file: network, data, base training and choices."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pbcompress.config.dendrites import DendriteConfig
from pbcompress.config.recovery import RecoveryConfig
from pbcompress.config.whole import CompressConfig
from pbcompress.core.bounded_files import is_there, read_bounded
from pbcompress.core.randomness import seeded
from pbcompress.errors import CompressionError, StateMismatchError
from pbcompress.export.onnx_export import ExportReport
from pbcompress.frontiers.points import Frontier
from pbcompress.frontiers.sweep import frontier
from pbcompress.pipeline import compress
from pbcompress.planning.width_plan import WidthPlan, plan_widths
from pbcompress.quantization.guards import way_named
from pbcompress.quantization.precisions import Fp16, Int8
from pbcompress.recipes.builders import as_data, as_model, resolve_trusted
from pbcompress.recipes.changes import changed, check_keys
from pbcompress.recipes.weights import load_weights_
from pbcompress.recovery.checkpoint import Checkpoint
from pbcompress.recovery.recover import recover_
from pbcompress.result import CompressionResult
from pbcompress.runs.held_folder import held
from pbcompress.runs.run_identity import check_identity, identity_of, task_identity
from pbcompress.training.callbacks import Callback
from pbcompress.training.history import Stage
from pbcompress.training.progress import ProgressBar
from pbcompress.training.task import Data, Task, inputs_of

__all__ = ["Preview", "Recipe", "export_result", "plan_recipe", "run_recipe", "sweep_recipe"]

MOST_BYTES = 2**20
MOST_DOTS = 1000  # of a line: the time to read a key grows with the square of its parts


@dataclass(frozen=True)
class Recipe:
    """What a recipe file holds.

    It names functions, which are called: see `builders` for which it may.

    Sections::

        [model]     build = "package.module:function", arguments = {...}, and optionally
                    weights = "file.safetensors" or a .pt file that holds a state dict
        [data]      build = "package.module:function", arguments = {...}: an object with train, val
                    and test batches
        [train]     choices of RecoveryConfig, to train the base network; needed without weights
        [compress]  target_params, run_dir, seed, control, and the tables width, dendrites, recovery
        [export]    optional: quantize = "int8" or "fp16", max_drop, recover_epochs: see
                    `export_onnx`; the file is RUN_DIR/model.int8.onnx, or model.fp16.onnx

    Attributes:
        model: The table [model].
        data: The table [data].
        target_params: See `compress`.
        run_dir: See `compress`.
        config: See `compress`.
        train: How to train the base network; None if it has weights.
        seed: Seed of the base network and of the compression.
        control: See `compress`.
        export: The table [export]; None if nothing but RUN_DIR/model.onnx is wanted.
        trust: Packages whose functions the recipe may call.
    """

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    target_params: float
    run_dir: str
    config: CompressConfig
    train: RecoveryConfig | None = None
    seed: int = 0
    control: bool = False
    export: Int8 | Fp16 | None = None
    trust: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        path: str | Path,
        *,
        trust: Sequence[str] = (),
        changes: Mapping[str, Any] | None = None,
    ) -> "Recipe":
        """Read a recipe file.

        Args:
            path: The file.
            trust: Packages whose functions it may call, beside those of pbcompress and torch.
            changes: Values instead of those of the file, by dotted key (``"train.epochs"``).

        Raises:
            CompressionError: The file is missing, no TOML, or has something unknown.
        """
        file = Path(path)
        if not is_there(file):
            raise CompressionError(
                f"The recipe {file} is not there. Check the path, or write one: pbcompress init."
            )
        try:
            content = read_bounded(file, MOST_BYTES)
            if max((line.count(b".") for line in content.splitlines()), default=0) > MOST_DOTS:
                raise ValueError("a line has too many dots")
            tables = tomllib.loads(content.decode())
        except StateMismatchError as err:
            raise CompressionError(f"The recipe {file} cannot be read: {err}") from err
        except (ValueError, RecursionError) as err:
            raise CompressionError(f"The recipe {file} is no TOML: {err}.") from err
        try:
            return cls._from_tables(changed(tables, changes or {}), tuple(trust))
        except (ValueError, TypeError, KeyError, AttributeError) as err:
            reason = f"{err} is missing" if isinstance(err, KeyError) else str(err).rstrip(".")
            end = "" if reason.endswith("?") else "."
            raise CompressionError(f"The recipe {file} cannot be used: {reason}{end}") from err

    @classmethod
    def _from_tables(cls, tables: dict[str, Any], trust: tuple[str, ...]) -> "Recipe":
        check_keys(tables)
        choices = dict(tables["compress"])
        of_config = [name for name in ("width", "dendrites", "recovery") if name in choices]
        config = CompressConfig.from_dict({name: choices.pop(name) for name in of_config})
        train = RecoveryConfig.from_dict(tables["train"]) if "train" in tables else None
        for name in ("model", "data"):
            if "build" not in tables[name]:
                raise ValueError(f"[{name}] has no build, the function to call")
        if train is None and "weights" not in tables["model"]:
            raise ValueError("[model] has no weights and there is no [train] to make them")
        model, data, export = tables["model"], tables["data"], dict(tables.get("export", {}))
        if "export" in tables and "quantize" not in export:
            raise ValueError("[export] has no quantize, which is int8 or fp16")
        way = way_named(export.pop("quantize"), export) if export else None
        return cls(model, data, config=config, train=train, export=way, trust=trust, **choices)

    def make_model(self) -> nn.Module:
        """Build the original architecture."""
        build = resolve_trusted(self.model["build"], self.trust)
        with seeded(self.seed, "model"):
            return as_model(build, self.model["build"], self.model.get("arguments", {}))

    def make_data(self) -> Data:
        """Build the data."""
        name = self.data["build"]
        build = resolve_trusted(name, self.trust)
        return as_data(build, name, self.data.get("arguments", {}))


@dataclass(frozen=True)
class Preview:
    """What a recipe would do.

    Attributes:
        recipe: The recipe.
        plan: The widths of plain width alone.
    """

    recipe: Recipe
    plan: WidthPlan

    def __str__(self) -> str:
        recipe, base = self.recipe, self.recipe.train
        first = f"It would train {recipe.model['build']} for {base.epochs} epochs" if base else ""
        first = first or f"It would load {recipe.model['weights']} into {recipe.model['build']}"
        return (
            f"{first}, narrow it as below, train it for {recipe.config.recovery.epochs} epochs, "
            f"and write to {recipe.run_dir}. Nothing was trained or written.\n\n{self.plan}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        recipe = self.recipe
        return {
            "model": dict(recipe.model),
            "data": dict(recipe.data),
            "target_params": recipe.target_params,
            "run_dir": recipe.run_dir,
            "seed": recipe.seed,
            "train": recipe.train.to_dict() if recipe.train else None,
            "compress": recipe.config.to_dict(),
            "plan": self.plan.to_dict(),
        }


def plan_recipe(recipe: Recipe) -> Preview:
    """Build network and data, and plan; train and write nothing."""
    resolve_trusted(recipe.model["build"], recipe.trust)
    data, model = recipe.make_data(), recipe.make_model().eval()
    if "weights" in recipe.model:
        load_weights_(model, Path(recipe.model["weights"]))
    inputs = inputs_of(data.train, Task(), model, torch.device("cpu")).example_inputs
    plan = plan_widths(
        model, inputs, recipe.target_params, config=recipe.config, data=data, seed=recipe.seed
    )
    return Preview(recipe, plan)


def run_recipe(recipe: Recipe, *, progress: bool = True) -> CompressionResult:
    """Train the base network if it has no weights, and compress it; a stopped run resumes."""
    model, data = _trained(recipe, progress=progress)
    return compress(
        model,
        recipe.target_params,
        data=data,
        config=recipe.config,
        seed=recipe.seed,
        run_dir=recipe.run_dir,
        control=recipe.control,
        progress=progress,
    )


def sweep_recipe(
    recipe: Recipe,
    targets: Sequence[float],
    *,
    progress: bool = True,
    executor: Literal["ray"] | None = None,
) -> Frontier:
    """Do the same at several targets instead of the recipe's; see `frontier`."""
    model, data = _trained(recipe, progress=progress)
    return frontier(
        model,
        targets,
        data=data,
        config=recipe.config,
        seed=recipe.seed,
        run_dir=recipe.run_dir,
        progress=progress,
        executor=executor,
    )


def _trained(recipe: Recipe, *, progress: bool) -> tuple[nn.Module, Data]:
    """Return the base network with its weights, which may have to be trained, and the data."""
    resolve_trusted(recipe.model["build"], recipe.trust)  # before the data take their time
    data, model = recipe.make_data(), recipe.make_model()
    callbacks = (ProgressBar(),) if progress else ()
    if "weights" in recipe.model:
        load_weights_(model, Path(recipe.model["weights"]))
    else:
        _train_base(recipe, model, data, Path(recipe.run_dir) / "checkpoints", callbacks)
    return model, data


def _train_base(
    recipe: Recipe, model: nn.Module, data: Data, folder: Path, callbacks: Sequence[Callback]
) -> None:
    """Train the base network, or go on with a training that was stopped."""
    assert recipe.train is not None
    base, task = CompressConfig(dendrites=DendriteConfig(max_sets=0), recovery=recipe.train), Task()
    with held(folder):
        identity = identity_of(
            model=model,
            inputs=None,
            choices={"[train]": base.to_dict(), "seed": recipe.seed},
            data=data,
            task=task,
            task_before=task_identity(task),
        )
        check_identity(folder, identity, None)
        recover_(
            model,
            data,
            config=base,
            seed=recipe.seed,
            stage=Stage.BASE,
            callbacks=callbacks,
            checkpoint=Checkpoint(folder / "base.safetensors", identity.fingerprint),
        )


def export_result(recipe: Recipe, result: CompressionResult) -> ExportReport:
    """Write ``RUN_DIR/model.int8.onnx`` as the table [export] asks; no file if it is not taken."""
    assert recipe.export is not None
    data = recipe.make_data()
    path = Path(recipe.run_dir) / f"model.{recipe.export.kind}.onnx"
    report = result.export_onnx(path, data=data, quantize=recipe.export)
    if report.quantization and not report.quantization.accepted:
        path.unlink()  # it is the float32 one, which is there as model.onnx
    return report
