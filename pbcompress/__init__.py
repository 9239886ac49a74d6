"""pbcompress: shrink a trained network to a size, win its accuracy back, prove what ships.

The names below are the public API; docs of each are on the name. Those that need ONNX or
torch.export are resolved on first use, so that ``import pbcompress`` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pbcompress.card import CardConfig as CardConfig
from pbcompress.checkpoint import load as load
from pbcompress.config import Budget as Budget
from pbcompress.config import CompressConfig as CompressConfig
from pbcompress.config import DendriteConfig as DendriteConfig
from pbcompress.config import RecoveryConfig as RecoveryConfig
from pbcompress.config import WidthConfig as WidthConfig
from pbcompress.cuts import LayerCut as LayerCut
from pbcompress.cycles import Phase as Phase
from pbcompress.cycles import cycles as cycles
from pbcompress.dendrite import DendriteLayer as DendriteLayer
from pbcompress.dendrite import attach_dendrites_ as attach_dendrites_
from pbcompress.dendrite import detach_dendrites_ as detach_dendrites_
from pbcompress.errors import CompressionError as CompressionError
from pbcompress.errors import DivergedError as DivergedError
from pbcompress.errors import ExportMismatchError as ExportMismatchError
from pbcompress.errors import StateMismatchError as StateMismatchError
from pbcompress.errors import TargetUnreachableError as TargetUnreachableError
from pbcompress.errors import UnsupportedLayerError as UnsupportedLayerError
from pbcompress.explain import PlanDiff as PlanDiff
from pbcompress.fuse import fuse as fuse
from pbcompress.graphnet import load_spec as load_spec
from pbcompress.history import History as History
from pbcompress.initialization import initialize_candidates_ as initialize_candidates_
from pbcompress.measure import LayerCost as LayerCost
from pbcompress.measure import ModelCost as ModelCost
from pbcompress.measure import measure as measure
from pbcompress.phases import PhaseKind as PhaseKind
from pbcompress.plan import WidthPlan as WidthPlan
from pbcompress.plan import plan_widths as plan_widths
from pbcompress.projections import close_attention_ as close_attention_
from pbcompress.projections import open_attention_ as open_attention_
from pbcompress.recovery import recover_ as recover_
from pbcompress.shrinking import shrink as shrink
from pbcompress.shrinking import shrink_ as shrink_
from pbcompress.statistics import reestimate_batchnorm_ as reestimate_batchnorm_
from pbcompress.task import Data as Data
from pbcompress.task import Task as Task
from pbcompress.training import Callback as Callback
from pbcompress.training import evaluate as evaluate

if TYPE_CHECKING:
    from pbcompress.benchmarking import Benchmark as Benchmark
    from pbcompress.benchmarking import bench as bench
    from pbcompress.comparing import compare as compare
    from pbcompress.comparison import Comparison as Comparison
    from pbcompress.export import ExportReport as ExportReport
    from pbcompress.export import export_onnx as export_onnx
    from pbcompress.packaging import Package as Package
    from pbcompress.packaging import package as package
    from pbcompress.pipeline import compress as compress
    from pbcompress.program import ProgramReport as ProgramReport
    from pbcompress.program import export_pt2 as export_pt2
    from pbcompress.result import CompressionResult as CompressionResult
    from pbcompress.spec import save_spec as save_spec

_ON_FIRST_USE = {
    "Benchmark": "benchmarking",
    "bench": "benchmarking",
    "Comparison": "comparison",
    "CompressionResult": "result",
    "ExportReport": "export",
    "Package": "packaging",
    "ProgramReport": "program",
    "compare": "comparing",
    "compress": "pipeline",
    "export_onnx": "export",
    "export_pt2": "program",
    "package": "packaging",
    "save_spec": "spec",
}


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module 'pbcompress' has no attribute {name!r}")
    return getattr(import_module(f"pbcompress.{_ON_FIRST_USE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE})
