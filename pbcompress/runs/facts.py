"""What is known of a finished run, as typed records: every report is made from these alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pbcompress.comparison.intervals import Estimate
from pbcompress.config.budget import Budget
from pbcompress.config.whole import CompressConfig
from pbcompress.core.records import read_by, written_by
from pbcompress.costs.latency_model import Shipped
from pbcompress.costs.measured import ModelCost
from pbcompress.onnx_files.benchmark import Benchmark
from pbcompress.runs.contenders import Contender, Score
from pbcompress.runs.deployment import Deployment
from pbcompress.runs.file_inspection import Inspection
from pbcompress.training.history import Stage

__all__ = ["ContenderFacts", "FileEvidence", "Metric", "NetworkFacts", "RunFacts"]


@dataclass(frozen=True)
class Metric:
    """What networks are scored by.

    Attributes:
        name: Of the task's metric, such as "accuracy".
        higher_is_better: Its direction.
    """

    name: str
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """A network.

    Attributes:
        cost: Parameters and FLOPs, dendrites included.
        score: Its metric; None without data.
    """

    cost: ModelCost
    score: Score | None


@dataclass(frozen=True, kw_only=True)
class ContenderFacts(NetworkFacts):
    """A network that was made for the target; see `Contender`.

    Attributes:
        name: As there.
        sets: Dendrite sets that it kept.
        dendrite_params: Parameters of dendrites, among those of ``cost``.
        steps: Optimizer steps of its training.
        epochs: Epochs of its training.
        trial: Its metric on validation after the trial; None where there was none.
        absorbed: Dendrite sets that are folded into its neurons.
    """

    name: Stage
    sets: int
    dendrite_params: int
    steps: int
    epochs: int
    trial: float | None = None
    absorbed: int = 0

    @classmethod
    def of(cls, contender: Contender) -> "ContenderFacts":
        """Return what is known of a trained network."""
        history = contender.history
        return cls(
            cost=contender.cost,
            score=contender.score,
            name=contender.name,
            sets=contender.sets,
            dendrite_params=contender.dendrite_params,
            steps=history.steps if history else 0,
            epochs=len(history) if history else 0,
            trial=contender.trial,
            absorbed=contender.absorbed,
        )


@dataclass(frozen=True)
class FileEvidence:
    """What the ONNX files in a run's folder are now; see `with_evidence`.

    Attributes:
        files: Every file, the shipped one first.
        problems: In a sentence each: what does not fit the run.
        bench: These files on this machine, the reason why they were not timed, or None.
        scores: The metric of each through ONNX Runtime; None without data.
    """

    files: tuple[Inspection, ...]
    problems: tuple[str, ...]
    bench: Benchmark | str | None
    scores: tuple[Estimate, ...] | None


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A finished run.

    Attributes:
        pbcompress: Version that made it.
        torch: Version that made it.
        budget: What was asked for.
        seed: Seed.
        note: How the result was chosen, in a sentence.
        fingerprint: Identifies model, target, configuration, seed and task.
        metric: What the networks were scored by.
        config: All choices.
        before: The original.
        after: The result.
        other: The network beside it, if there is one: the control, or what lost the trial.
        over_control: Metric of the result less that of the control; None without a control.
        deployment: Files and latencies, the reason why there are none, or None if not asked for.
        left_alone: Layers that kept their width, with the reason.
        planned: The exported networks as the plan measured them, where the budget asked for it.
        expected_speedup: As of a `Solution`; None where there is none.
        evidence: The files as they were found later; None where they were not read.
    """

    pbcompress: str
    torch: str
    budget: Annotated[Budget, written_by(Budget.to_dict), read_by(Budget.from_dict)]
    seed: int
    note: str
    fingerprint: str
    metric: Metric
    config: Annotated[
        CompressConfig, written_by(CompressConfig.to_dict), read_by(CompressConfig.from_dict)
    ]
    before: NetworkFacts
    after: ContenderFacts
    other: ContenderFacts | None
    over_control: Estimate | None
    deployment: Deployment | str | None
    left_alone: Mapping[str, str]
    planned: Shipped | None = None
    expected_speedup: float | None = None
    evidence: FileEvidence | None = None

    @property
    def shipped(self) -> Deployment | None:
        """Files and latencies; None where there are none."""
        return self.deployment if isinstance(self.deployment, Deployment) else None

    @property
    def contenders(self) -> tuple[ContenderFacts, ...]:
        """The result, and the network beside it if there is one."""
        return (self.after, self.other) if self.other else (self.after,)

    @property
    def problems(self) -> tuple[str, ...]:
        """What does not fit the run, if its files were read."""
        return self.evidence.problems if self.evidence else ()
