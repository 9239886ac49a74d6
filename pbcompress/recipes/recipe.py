"""A run of `compress` as a TOML file: network, data, base training and choices."""

import hashlib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from pbcompress.config.dendrites import DendriteConfig
from pbcompress.config.recovery import RecoveryConfig
from pbcompress.config.whole import CompressConfig
from pbcompress.core.bounded_files import read_bounded
from pbcompress.core.randomness import seeded
from pbcompress.core.tensor_files import read_tensors
from pbcompress.errors import CompressionError, StateMismatchError
from pbcompress.export.onnx_export import ExportReport
from pbcompress.pipeline import compress
from pbcompress.quantization.guards import way_named
from pbcompress.quantization.precisions import Fp16, Int8
from pbcompress.recovery.checkpoint import Checkpoint
from pbcompress.recovery.recover import recover_
from pbcompress.result import CompressionResult
from pbcompress.training.history import Stage
from pbcompress.training.progress import ProgressBar
from pbcompress.training.task import Data, Task

__all__ = ["Recipe", "export_result", "load_data", "load_task", "resolve", "run_recipe"]


@dataclass(frozen=True)
class Recipe:
    """What a recipe file holds.

    Sections::

        [model]     build = "package.module:function", arguments = {...}, and optionally
                    weights = "file.safetensors"
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
    digest: str = field(default="", repr=False)

    @classmethod
    def read(cls, path: str | Path) -> "Recipe":
        """Read a recipe file.

        Raises:
            CompressionError: The file is missing, no TOML, or has something unknown.
        """
        file = Path(path)
        try:
            content = read_bounded(file)
            tables = tomllib.loads(content.decode())
        except StateMismatchError as err:
            raise CompressionError(f"The recipe {file} cannot be read: {err}") from err
        except (ValueError, RecursionError) as err:
            raise CompressionError(f"The recipe {file} is no TOML: {err}.") from err
        try:
            return cls._from_tables(tables, hashlib.sha256(content).hexdigest())
        except (ValueError, TypeError, KeyError, AttributeError) as err:
            reason = f"{err} is missing" if isinstance(err, KeyError) else err
            raise CompressionError(f"The recipe {file} cannot be used: {reason}.") from err

    @classmethod
    def _from_tables(cls, tables: dict[str, Any], digest: str) -> "Recipe":
        unknown = set(tables) - {"model", "data", "train", "compress", "export"}
        if unknown:
            raise ValueError(f"it has unknown sections {', '.join(sorted(unknown))}")
        choices = dict(tables["compress"])
        of_config = [name for name in ("width", "dendrites", "recovery") if name in choices]
        config = CompressConfig.from_dict({name: choices.pop(name) for name in of_config})
        train = RecoveryConfig.from_dict(tables["train"]) if "train" in tables else None
        for name in ("model", "data"):
            extra = set(tables[name]) - {"build", "arguments", "weights"}
            if extra or "build" not in tables[name]:
                raise ValueError(f"[{name}] takes build, arguments, weights; not {tables[name]}")
        if train is None and "weights" not in tables["model"]:
            raise ValueError("[model] has no weights and there is no [train] to make them")
        model, data, export = tables["model"], tables["data"], dict(tables.get("export", {}))
        extra = set(export) - {"quantize", "max_drop", "recover_epochs"}
        if extra or ("export" in tables and "quantize" not in export):
            raise ValueError(f"[export] takes quantize, max_drop, recover_epochs; not {export}")
        way = way_named(export.pop("quantize"), export) if export else None
        return cls(model, data, config=config, train=train, export=way, digest=digest, **choices)

    def make_model(self) -> nn.Module:
        """Build the original architecture."""
        build = resolve(self.model["build"])
        with seeded(self.seed, "model"):
            model: nn.Module = build(**self.model.get("arguments", {}))
        return model


def resolve(name: str) -> Callable[..., Any]:
    """Import ``package.module:function``.

    Raises:
        CompressionError: There is no such thing.

    Example:
        >>> resolve("math:sqrt")(4.0)
        2.0
    """
    module, _, attribute = name.partition(":")
    try:
        found: Callable[..., Any] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as err:
        raise CompressionError(
            f"{name!r} was to be imported and could not be: {err}. Write package.module:function, "
            "importable from where you are."
        ) from err
    return found


def load_data(name: str, arguments: Mapping[str, Any]) -> Data:
    """Call ``package.module:function``, whose result has train, val and perhaps test batches.

    Raises:
        CompressionError: There is no such thing, its files cannot be read, or its result has no
            train or val.
    """
    try:
        found = resolve(name)(**arguments)
    except OSError as err:
        raise CompressionError(f"{name} was to give the data and could not: {err}") from err
    missing = [split for split in ("train", "val") if not hasattr(found, split)]
    if missing:
        raise CompressionError(
            f"{name} was to give train and val batches; its {type(found).__name__} has no "
            f"{' and no '.join(missing)}. Return a Data, or an object with these attributes."
        )
    return Data(train=found.train, val=found.val, test=getattr(found, "test", None))


def load_task(name: str) -> Task:
    """Import a `Task` as ``package.module:name``.

    Raises:
        CompressionError: There is no such thing, or it is something else.
    """
    found: object = resolve(name)
    if not isinstance(found, Task):
        raise CompressionError(f"{name} was to be a Task; it is a {type(found).__name__}.")
    return found


def run_recipe(recipe: Recipe, *, progress: bool = True) -> CompressionResult:
    """Train the base network if it has no weights, and compress it; a stopped run resumes."""
    data = load_data(recipe.data["build"], recipe.data.get("arguments", {}))
    model = recipe.make_model()
    run_dir = Path(recipe.run_dir)
    callbacks = (ProgressBar(),) if progress else ()
    if "weights" in recipe.model:
        path = Path(recipe.model["weights"])
        try:
            model.load_state_dict(read_tensors(path, any_kind=True)[0])
        except RuntimeError as err:
            raise StateMismatchError(f"{path} holds the weights of another model: {err}") from err
    else:
        assert recipe.train is not None
        base = CompressConfig(dendrites=DendriteConfig(max_sets=0), recovery=recipe.train)
        checkpoint = Checkpoint(run_dir / "checkpoints" / "base.safetensors", recipe.digest)
        recover_(
            model,
            data,
            config=base,
            seed=recipe.seed,
            stage=Stage.BASE,
            callbacks=callbacks,
            checkpoint=checkpoint,
        )
    return compress(
        model,
        recipe.target_params,
        data=data,
        config=recipe.config,
        seed=recipe.seed,
        run_dir=run_dir,
        control=recipe.control,
        progress=progress,
    )


def export_result(recipe: Recipe, result: CompressionResult) -> ExportReport:
    """Write ``RUN_DIR/model.int8.onnx`` as the table [export] asks; no file if it is not taken."""
    assert recipe.export is not None
    data = load_data(recipe.data["build"], recipe.data.get("arguments", {}))
    path = Path(recipe.run_dir) / f"model.{recipe.export.kind}.onnx"
    report = result.export_onnx(path, data=data, quantize=recipe.export)
    if report.quantization and not report.quantization.accepted:
        path.unlink()  # it is the float32 one, which is there as model.onnx
    return report
