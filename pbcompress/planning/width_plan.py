"""A plan of narrower widths: made, explained, edited, compared, kept as text."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pbcompress.config.budget import Budget
from pbcompress.config.dendrites import DendriteConfig
from pbcompress.config.whole import CompressConfig, whole_config
from pbcompress.config.widths import WidthConfig
from pbcompress.core.accepted_models import check_model
from pbcompress.core.inputs import Call, as_call, to_device, with_values
from pbcompress.core.json_documents import render
from pbcompress.core.modules import device_of, has_no_data
from pbcompress.core.time_first import one_sample
from pbcompress.core.turns import in_turn
from pbcompress.costs.latency_model import Shipped
from pbcompress.costs.measured import ModelCost
from pbcompress.planning.explanation import PlanDiff, plan_text, widths_of
from pbcompress.planning.importance import sample_for
from pbcompress.planning.measured_budget import Bench
from pbcompress.planning.plan_document import KIND, VERSION, plan_data, plan_parts
from pbcompress.planning.planner import Solution, find_widths
from pbcompress.planning.width_picture import width_picture
from pbcompress.pruning.cuts import LayerCut, check_cuts
from pbcompress.pruning.unit_choice import UnitChoice
from pbcompress.training.experiment import Experiment
from pbcompress.training.task import Data, Task

__all__ = ["WidthPlan", "make_plan", "plan_widths"]


@dataclass(frozen=True, kw_only=True)
class WidthPlan:
    """What to cut where: data only, replayed by `shrink` with no data, trace or chance.

    ``print(plan)`` explains every layer.

    Attributes:
        solution: What the planner found; its attributes are the plan's too.
        config: The choices that it was made with.
        budget: What was asked for: counts, or shares of the original.
    """

    solution: Solution
    config: CompressConfig
    budget: Budget

    @property
    def steps(self) -> tuple[LayerCut, ...]:
        """The cuts, one for each dimension of each layer that changes."""
        return self.solution.steps

    @property
    def cost_before(self) -> ModelCost:
        """Cost of the original."""
        return self.solution.cost_before

    @property
    def cost_after(self) -> ModelCost:
        """Cost of the shrunk network, predicted from the structure of the original."""
        return self.solution.cost_after

    @property
    def target_params(self) -> int:
        """The bound on parameters, dendrites included; without one, what is below the original."""
        return self.solution.target_params

    @property
    def target_flops(self) -> int | None:
        """The bound on multiply-adds; None if there is none."""
        return self.solution.target_flops

    @property
    def reserved_params(self) -> int:
        """Part of the target kept free for dendrites."""
        return self.solution.reserved_params

    @property
    def grow(self) -> Mapping[str, bool]:
        """Layers that the reserve is for, with whether each dendrite has its own BatchNorm."""
        return self.solution.grow

    @property
    def left_alone(self) -> Mapping[str, str]:
        """Layers that keep their width, with the reason."""
        return self.solution.left_alone

    @property
    def shipped(self) -> Shipped | None:
        """The exported networks as measured, where the target asked for it."""
        return self.solution.shipped

    @property
    def expected_speedup(self) -> float | None:
        """How many times as fast as the original the shrunk network should be, by a table alone.

        In ONNX Runtime on a CPU of this machine's kind: one thread, batch 1, without dendrites.
        None in a plan of before there was such a table.
        """
        return self.solution.expected_speedup

    @property
    def stated(self) -> Mapping[str, int]:
        """What the config of the shrunk network states, by the path of each number.

        Empty for a model that carries no config, or whose groups have widths of their own.
        """
        return self.solution.stated

    @property
    def proven(self) -> str:
        """What the proof of the cuts was of; "" where nothing is cut."""
        return self.solution.proven

    @property
    def unused(self) -> str:
        """Why no bound is used up: the next step to wider layers is over it; "" where one is."""
        return self.solution.unused

    @property
    def choices(self) -> tuple[UnitChoice, ...]:
        """Groups of which `shrink_files` chooses the units, in a plan made without weights."""
        return self.solution.choices

    @property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        """Every name of a parameter that has several, by the first."""
        return self.solution.names

    def to_dict(self) -> dict[str, Any]:
        """Return the whole plan as JSON data."""
        return plan_data(self.solution, self.config, self.budget)

    def to_json(self) -> str:
        """Return the whole plan as text, from which `from_json` makes an equal one."""
        return render(self.to_dict(), KIND, VERSION)

    @classmethod
    def from_json(cls, text: str | bytes) -> "WidthPlan":
        """Rebuild a plan from `to_json`.

        Args:
            text: What `to_json` returned.

        Raises:
            StateMismatchError: The text is truncated, of another kind or version, or damaged.

        Example:
            >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
            >>> plan = plan_widths(net, torch.zeros(1, 8), 0.5)
            >>> WidthPlan.from_json(plan.to_json()) == plan
            True
        """
        solution, config, budget = plan_parts(text)
        return cls(solution=solution, config=config, budget=budget)

    def edit(
        self,
        model: nn.Module,
        example_inputs: object,
        widths: Mapping[str, int | float] | None = None,
        keep: Sequence[str] = (),
        *,
        data: Data | None = None,
        task: Task | None = None,
        seed: int = 0,
    ) -> "WidthPlan":
        """Return another plan for the same budget and choices, with some widths given.

        Args:
            model: The network that this plan is for; left as it is.
            example_inputs: As for `plan_widths`.
            widths: By layer (name or ``fnmatch`` pattern) its output channels, or a share of them
                in (0, 1]; these come after those that this plan was made with. See
                ``WidthConfig.pin``.
            keep: Layers whose width stays, beside those that this plan keeps.
            data: As for `plan_widths`.
            task: As for `plan_widths`.
            seed: As for `plan_widths`.

        Raises:
            StateMismatchError: The plan is of another network.
            UnsupportedLayerError: A layer cannot have the width that is given for it.
            TargetUnreachableError: The budget cannot be met around these widths.

        Example:
            >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
            >>> net.append(nn.Linear(32, 2))[0].out_features
            64
            >>> plan = plan_widths(net, torch.zeros(1, 8), 0.5)
            >>> plan.edit(net, torch.zeros(1, 8), {"0": 20}).cost_after.by_layer["0"].width
            20
        """
        check_cuts(model, self.steps)
        width = self.config.width
        pin, kept = (*width.pin, *(widths or {}).items()), (*width.keep, *keep)
        config = replace(self.config, width=replace(width, pin=pin, keep=kept))
        return plan_widths(
            model, example_inputs, self.budget, config=config, data=data, task=task, seed=seed
        )

    def diff(self, other: "WidthPlan") -> PlanDiff:
        """Return how another plan of the same network differs.

        Raises:
            StateMismatchError: The plans are of different networks, or for other inputs.
        """
        return PlanDiff.between(self, other)

    def plot(self, path: str | Path) -> None:
        """Write a picture of every layer's width before and after.

        Args:
            path: A file that ends in .svg or .png.

        Raises:
            CompressionError: The ending is another one, matplotlib is not installed, or the file
                cannot be written.
        """
        width_picture(widths_of(self), Path(path))

    def __str__(self) -> str:
        return plan_text(self)


@in_turn
def plan_widths(
    model: nn.Module,
    example_inputs: object,
    target_params: float | Budget,
    *,
    config: CompressConfig | WidthConfig | DendriteConfig | None = None,
    data: Data | None = None,
    task: Task | None = None,
    seed: int = 0,
) -> WidthPlan:
    """Find the widest narrower network that fits a target, and prove it on a copy.

    Widths and parameters do not shrink alike (half the channels leave about a quarter of the
    parameters), so the widths are searched on a closed form of the cost. The plan is then carried
    out on a deep copy, which must compute what the original computes when the removed channels are
    not read. A group of channels for which that fails keeps its width, with the reason.

    Args:
        model: Network to shrink; left as it is. It may be on the meta device: then widths are
            planned without weights, cuts are proven on two layers of every kind with random ones
            (``plan.proven``), and `shrink_files` chooses the units.
        example_inputs: A tensor, tuple or dict of one forward pass, the first axis the batch;
            or an `Example`, which says what is.
        target_params: At most this many parameters: a count, a share in (0, 1) or a `Budget`. A
            latency or a file size is confirmed on exported networks, which takes some seconds for
            each of them.
        config: ``width`` says how, and with a number as ``dendrites.share`` room is kept for
            ``dendrites.max_sets`` sets; with "auto" none is. Either part may be given alone.
        data: For an importance that needs train batches; no other split is touched.
        task: How the model runs on a batch, and its loss; default: classification.
        seed: Names the order of those batches.

    Returns:
        The plan.

    Raises:
        TargetUnreachableError: The target is not below the original, or below the smallest
            reachable network; ``.smallest`` says what that one has.
        UnsupportedLayerError: The model, or a layer of it, cannot be cut at all (wrapped, scripted,
            lazy, without data), or has not the width that is asked of it.
        CompressionError: The forward pass fails on ``example_inputs``, an importance needs data
            and there are none, or a latency or file size is asked of a network that cannot be
            exported.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> plan = plan_widths(net, torch.zeros(1, 8), 0.5)
        >>> 0.97 * 353 <= plan.cost_after.params <= 353
        True

    Source:
        Coupled channels: Fang et al., DepGraph, 2023, https://arxiv.org/abs/2301.12900.
    """
    choices = whole_config(config, WidthConfig, DendriteConfig)
    experiment = None if data is None else Experiment(data, task or Task(), seed)
    call = (task or Task()).said(as_call(example_inputs))
    return make_plan(model, call, Budget.of(target_params), choices, experiment)


def make_plan(
    model: nn.Module,
    example_inputs: object,
    budget: Budget,
    config: CompressConfig,
    experiment: Experiment | None,
) -> WidthPlan:
    """Return the plan of `plan_widths`, whose data, task and seed are one value here."""
    check_model(model, may_lack_data=True)
    sample = sample_for(config.width, experiment)
    with torch.inference_mode(False):  # tensors made in it cannot be followed
        given = with_values(as_call(example_inputs)) if has_no_data(model) else example_inputs
        call = to_device(one_sample(model, as_call(given)), device_of(model))
        solution = find_widths(model, call, budget, config, sample, _open_bench)
    return WidthPlan(solution=solution, config=config, budget=budget)


def _open_bench(
    model: nn.Module, call: Call, layers: Collection[str], as_shipped: bool
) -> AbstractContextManager[Bench]:
    from pbcompress.planning.export_bench import ExportBench  # needs onnx and its runtime

    return ExportBench(model, call, layers, as_shipped=as_shipped)
