"""pbcompress: shrink a trained network to a size, recover its accuracy, prove what ships.

The names below are the public API; docs of each are on the name. Each is resolved on first use, so
that ``import pbcompress`` and the help of the command line need neither torch nor ONNX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pbcompress.comparison.side_by_side import compare as compare
    from pbcompress.comparison.table import Comparison as Comparison
    from pbcompress.compensation.compensate import compensate_ as compensate_
    from pbcompress.compensation.report import CompensationReport as CompensationReport
    from pbcompress.config.budget import Budget as Budget
    from pbcompress.config.dendrites import Correlation as Correlation
    from pbcompress.config.dendrites import DendriteConfig as DendriteConfig
    from pbcompress.config.dendrites import Full as Full
    from pbcompress.config.dendrites import Gradient as Gradient
    from pbcompress.config.dendrites import Grouped as Grouped
    from pbcompress.config.dendrites import Hybrid as Hybrid
    from pbcompress.config.dendrites import LowRank as LowRank
    from pbcompress.config.dendrites import Shared as Shared
    from pbcompress.config.dendrites import Tied as Tied
    from pbcompress.config.recovery import DistillationConfig as DistillationConfig
    from pbcompress.config.recovery import EngineConfig as EngineConfig
    from pbcompress.config.recovery import OptimizerConfig as OptimizerConfig
    from pbcompress.config.recovery import RecoveryConfig as RecoveryConfig
    from pbcompress.config.whole import CompressConfig as CompressConfig
    from pbcompress.config.widths import WidthConfig as WidthConfig
    from pbcompress.core.inputs import Example as Example
    from pbcompress.costs.measured import LayerCost as LayerCost
    from pbcompress.costs.measured import ModelCost as ModelCost
    from pbcompress.costs.measured import measure as measure
    from pbcompress.dendrites.absorption import absorb_dendrites_ as absorb_dendrites_
    from pbcompress.dendrites.attention_projections import close_attention_ as close_attention_
    from pbcompress.dendrites.attention_projections import open_attention_ as open_attention_
    from pbcompress.dendrites.growth import attach_dendrites_ as attach_dendrites_
    from pbcompress.dendrites.growth import detach_dendrites_ as detach_dendrites_
    from pbcompress.dendrites.layer import DendriteLayer as DendriteLayer
    from pbcompress.errors import CompressionError as CompressionError
    from pbcompress.errors import DivergedError as DivergedError
    from pbcompress.errors import ExportMismatchError as ExportMismatchError
    from pbcompress.errors import StateMismatchError as StateMismatchError
    from pbcompress.errors import TargetUnreachableError as TargetUnreachableError
    from pbcompress.errors import UnsupportedLayerError as UnsupportedLayerError
    from pbcompress.export.fusion import fuse as fuse
    from pbcompress.export.onnx_export import ExportReport as ExportReport
    from pbcompress.export.onnx_export import export_onnx as export_onnx
    from pbcompress.export.pt2 import ProgramReport as ProgramReport
    from pbcompress.export.pt2 import export_pt2 as export_pt2
    from pbcompress.export.spec import save_spec as save_spec
    from pbcompress.export.spec_network import load_spec as load_spec
    from pbcompress.frontiers.points import Frontier as Frontier
    from pbcompress.frontiers.points import FrontierPoint as FrontierPoint
    from pbcompress.frontiers.sweep import frontier as frontier
    from pbcompress.onnx_files.benchmark import Benchmark as Benchmark
    from pbcompress.onnx_files.benchmark import bench as bench
    from pbcompress.packaging.folder import Package as Package
    from pbcompress.packaging.folder import package as package
    from pbcompress.packaging.model_card import CardConfig as CardConfig
    from pbcompress.pipeline import compress as compress
    from pbcompress.planning.explanation import PlanDiff as PlanDiff
    from pbcompress.planning.file_shrinking import shrink_files as shrink_files
    from pbcompress.planning.width_plan import WidthPlan as WidthPlan
    from pbcompress.planning.width_plan import plan_widths as plan_widths
    from pbcompress.pruning.cuts import LayerCut as LayerCut
    from pbcompress.pruning.shrinking import shrink as shrink
    from pbcompress.pruning.shrinking import shrink_ as shrink_
    from pbcompress.quantization.precisions import Fp16 as Fp16
    from pbcompress.quantization.precisions import Int8 as Int8
    from pbcompress.recovery.checkpoint import Checkpoint as Checkpoint
    from pbcompress.recovery.initialization import initialize_candidates_ as initialize_candidates_
    from pbcompress.recovery.learning_rate import find_lr as find_lr
    from pbcompress.recovery.phase_cycles import Phase as Phase
    from pbcompress.recovery.phase_cycles import cycles as cycles
    from pbcompress.recovery.policy import PhaseKind as PhaseKind
    from pbcompress.recovery.recover import recover_ as recover_
    from pbcompress.result import CompressionResult as CompressionResult
    from pbcompress.runs.saved_network import load as load
    from pbcompress.training.batch_statistics import reestimate_batchnorm_ as reestimate_batchnorm_
    from pbcompress.training.callbacks import Callback as Callback
    from pbcompress.training.history import History as History
    from pbcompress.training.loop import evaluate as evaluate
    from pbcompress.training.task import Data as Data
    from pbcompress.training.task import Task as Task
    from pbcompress.training.weight_average import WeightAverage as WeightAverage

_NAMES = {  # by module
    "comparison.side_by_side": "compare",
    "comparison.table": "Comparison",
    "compensation.compensate": "compensate_",
    "compensation.report": "CompensationReport",
    "config.budget": "Budget",
    "config.dendrites": "Correlation DendriteConfig Full Gradient "
    "Grouped Hybrid LowRank Shared Tied",
    "config.recovery": "DistillationConfig EngineConfig OptimizerConfig RecoveryConfig",
    "config.whole": "CompressConfig",
    "config.widths": "WidthConfig",
    "core.inputs": "Example",
    "costs.measured": "LayerCost ModelCost measure",
    "dendrites.absorption": "absorb_dendrites_",
    "dendrites.attention_projections": "close_attention_ open_attention_",
    "dendrites.growth": "attach_dendrites_ detach_dendrites_",
    "dendrites.layer": "DendriteLayer",
    "errors": "CompressionError DivergedError ExportMismatchError "
    "StateMismatchError TargetUnreachableError UnsupportedLayerError",
    "export.fusion": "fuse",
    "export.onnx_export": "ExportReport export_onnx",
    "export.pt2": "ProgramReport export_pt2",
    "export.spec": "save_spec",
    "export.spec_network": "load_spec",
    "frontiers.points": "Frontier FrontierPoint",
    "frontiers.sweep": "frontier",
    "onnx_files.benchmark": "Benchmark bench",
    "packaging.folder": "Package package",
    "packaging.model_card": "CardConfig",
    "pipeline": "compress",
    "planning.explanation": "PlanDiff",
    "planning.file_shrinking": "shrink_files",
    "planning.width_plan": "WidthPlan plan_widths",
    "pruning.cuts": "LayerCut",
    "pruning.shrinking": "shrink shrink_",
    "quantization.precisions": "Fp16 Int8",
    "recovery.checkpoint": "Checkpoint",
    "recovery.initialization": "initialize_candidates_",
    "recovery.learning_rate": "find_lr",
    "recovery.phase_cycles": "Phase cycles",
    "recovery.policy": "PhaseKind",
    "recovery.recover": "recover_",
    "result": "CompressionResult",
    "runs.saved_network": "load",
    "training.batch_statistics": "reestimate_batchnorm_",
    "training.callbacks": "Callback",
    "training.history": "History",
    "training.loop": "evaluate",
    "training.task": "Data Task",
    "training.weight_average": "WeightAverage",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from pbcompress.core.versions import version_of

        return version_of("pbcompress")
    if name not in _MODULES:
        raise AttributeError(f"module 'pbcompress' has no attribute {name!r}")
    return getattr(import_module(f"pbcompress.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
