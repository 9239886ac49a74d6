"""Facts of a run that nobody made, whole and in every variant that a report must bear."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pbcompress import Budget, CompressConfig, WidthConfig
from pbcompress.comparison.intervals import Estimate
from pbcompress.costs.latency_model import Shipped
from pbcompress.costs.measured import LayerCost, ModelCost
from pbcompress.export.onnx_export import ExportReport
from pbcompress.export.parity import Parity
from pbcompress.onnx_files.benchmark import Benchmark, FileBenchmark
from pbcompress.onnx_files.contents import FileFacts
from pbcompress.onnx_files.session import Latency
from pbcompress.quantization.guards import Quantization
from pbcompress.runs.contenders import Score
from pbcompress.runs.deployment import Deployment
from pbcompress.runs.facts import ContenderFacts, FileEvidence, Metric, NetworkFacts, RunFacts
from pbcompress.runs.file_inspection import Inspection
from pbcompress.training.history import History, Stage

Network = TypeVar("Network", NetworkFacts, ContenderFacts)

NASTY = 'body.<b>&"bold"\'</title></svg>'


def cost(layers: Mapping[str, LayerCost], **changes: Any) -> ModelCost:
    """Return the cost of a network that consists of some layers."""
    whole = ModelCost(
        params=sum(layer.params for layer in layers.values()),
        flops=sum(layer.flops for layer in layers.values()),
        uncounted_ops={},
        input_shapes={"0": (1, 3, 7)},
        by_layer=layers,
    )
    return replace(whole, **changes)


def contender(
    name: Stage, sets: int, layers: Mapping[str, LayerCost], score: Score | None, **changes: Any
) -> ContenderFacts:
    """Return a network of some layers that was trained for the target."""
    grown = sum(layer.params for key, layer in layers.items() if ".dendrites." in key)
    whole = ContenderFacts(
        cost=cost(layers),
        score=score,
        name=name,
        sets=sets,
        dendrite_params=grown,
        steps=72,
        epochs=8,
    )
    return replace(whole, **changes)


def make_proof(**changes: Any) -> ExportReport:
    whole = ExportReport(
        file=FileFacts(20, ("x",), ("y",), {"Conv": 2, "Gemm": 1}),
        parity=Parity(
            max_difference=2.4e-6,
            max_relative=3.7e-7,
            file_error=None,
            torch_error=None,
            agreement=None,
            batch_sizes=(1, 2, 5),
            axis_sizes={},
            checks=12,
        ),
        path="model.onnx",
        file_bytes=6_789,
    )
    of_parity = {name: changes.pop(name) for name in vars(whole.parity).keys() & changes.keys()}
    return replace(whole, parity=replace(whole.parity, **of_parity), **changes)


def make_deployment(**changes: Any) -> Deployment:
    whole = Deployment(
        bytes_before=12_345,
        bytes_after=6_789,
        latency_before=Latency(median=0.2345, p95=0.3, rounds=200, ratio=1.0),
        latency_after=Latency(median=0.1234, p95=0.2, rounds=200, ratio=1.88),
        proof=make_proof(),
        file=Inspection(
            name="model.onnx",
            sha256="0f" * 32,
            file_bytes=6_789,
            weights=1_444,
            flops=5_317,
            uncounted_ops={"Relu": 2},
            peak_activations=4_096,
            opset=20,
            input_names=("x",),
            output_names=("y",),
            operations={"Conv": 2, "Gemm": 1},
            metadata={},
        ),
    )
    return replace(whole, **changes)


def make_facts(**changes: Any) -> RunFacts:
    """Two layers and a BatchNorm; the network with dendrites is the result."""
    before = {
        "conv": LayerCost("Conv1d", 2400, 9600, 32),
        "bn": LayerCost("BatchNorm1d", 64, 256),
        "head": LayerCost("Linear", 330, 320, 10),
    }
    grown = {
        "conv": LayerCost("DendriteLayer", 9, 0),
        "conv.base_layer": LayerCost("Conv1d", 675, 2700, 9),
        "conv.dendrites.0.0": LayerCost("Conv1d", 675, 2700, 9),
        "bn": LayerCost("BatchNorm1d", 18, 72),
        "head": LayerCost("Linear", 100, 90, 10),
    }
    wide = {
        "conv": LayerCost("Conv1d", 1275, 5100, 17),
        "bn": LayerCost("BatchNorm1d", 34, 136),
        "head": LayerCost("Linear", 180, 170, 10),
    }
    whole = RunFacts(
        pbcompress="0.1.0",
        torch="2.13.0",
        budget=Budget(params=1500),
        seed=7,
        note="Validation chose the network with dendrites over width alone.",
        fingerprint="ab" * 32,
        metric=Metric("accuracy", higher_is_better=True),
        config=CompressConfig(),
        before=NetworkFacts(cost=cost(before), score=Score(0.95, 250, 0.94, 1400)),
        after=contender(Stage.DENDRITES, 1, grown, Score(0.9442, 250, 0.9321, 1400)),
        other=contender(Stage.WIDTH, 0, wide, Score(0.9242, 250, 0.9121, 1400)),
        over_control=None,
        deployment=make_deployment(),
        left_alone={"head": "its width is the network's output"},
    )
    return replace(whole, **changes)


def scored(network: Network, **changes: Any) -> Network:
    """Return a network with another score."""
    assert network.score is not None
    return replace(network, score=replace(network.score, **changes))


def costing(network: Network, **changes: Any) -> Network:
    """Return a network with another cost."""
    return replace(network, cost=replace(network.cost, **changes))


def of_all(facts: RunFacts, change: Callable[[Any], Any]) -> RunFacts:
    """Return facts with original, result and control changed in one way."""
    networks = (facts.before, facts.after, facts.other)
    before, after, other = map(change, networks)
    return replace(facts, before=before, after=after, other=other)


def no_data(facts: RunFacts) -> RunFacts:
    before, after = (replace(network, score=None) for network in (facts.before, facts.after))
    return replace(facts, before=before, after=after, other=None)


def set_dropped(facts: RunFacts) -> RunFacts:
    other = replace(facts.after, sets=0, dendrite_params=0)
    return replace(facts, after=facts.other, other=other)


def many_layers(facts: RunFacts) -> RunFacts:
    names = [
        f"backbone.stages.{i}.inverted_residual.pointwise_projection_with_a_long_name"
        for i in range(60)
    ]
    before = dict.fromkeys(names, LayerCost("Conv2d", 100, 100, 64))
    after = dict.fromkeys(names, LayerCost("Conv2d", 50, 50, 32))
    reasons = dict.fromkeys(names, "coupled to a sum of which another layer is kept")
    return replace(
        facts,
        before=costing(facts.before, by_layer={**facts.before.cost.by_layer, **before}),
        after=costing(facts.after, by_layer={**facts.after.cost.by_layer, **after}),
        left_alone={**facts.left_alone, **reasons},
    )


def nasty_names(facts: RunFacts) -> RunFacts:
    layers = {**facts.before.cost.by_layer, NASTY: LayerCost("Conv2d", 5, 5, 64)}
    return replace(
        facts,
        before=costing(facts.before, by_layer=layers, uncounted_ops={NASTY: 3}),
        left_alone={**facts.left_alone, NASTY: NASTY},
        metric=replace(facts.metric, name=NASTY),
        note=f"{NASTY} $x_",
        config=CompressConfig(width=WidthConfig(keep=(NASTY,))),
    )


def no_layers(facts: RunFacts) -> RunFacts:
    before, after = (costing(network, by_layer={}) for network in (facts.before, facts.after))
    return replace(facts, before=before, after=after, left_alone={})


def exact_shares(facts: RunFacts) -> RunFacts:
    """Make every accuracy one of so many samples."""
    return of_all(
        facts,
        lambda network: scored(
            network,
            val=round(network.score.val * 250) / 250,
            test=round(network.score.test * 1400) / 1400,
        ),
    )


def with_evidence(facts: RunFacts) -> RunFacts:
    """Two counters that differ, int8, and the files as they were found, one of them another."""
    facts = exact_shares(facts)
    quantization = Quantization(
        precision="int8",
        accepted=False,
        failures=("accuracy", "speed"),
        metric_name="accuracy",
        metric_before=0.944,
        metric_after=0.925,
        guard=0.005,
        bytes_before=6_789,
        bytes_after=3_210,
        speedup=0.91,
        least_speedup=1.0,
        excluded=("node_conv",),
        samples=256,
    )
    deployment = make_deployment(proof=make_proof(quantization=quantization))
    file = deployment.file
    time = Latency(median=0.0123, p95=0.0199, rounds=50, ratio=1.0)
    timed = FileBenchmark(
        name=file.name,
        params=file.weights,
        file_bytes=file.file_bytes,
        batch=1,
        flops=file.flops,
        latency=time,
        throughput=replace(time, median=0.32),
        peak_memory=1_234_567,
        peak_activations=file.peak_activations,
        kernels={},
    )
    other = replace(timed, name="model_int8.onnx", throughput=None, peak_memory=None)
    score = Estimate(0.9321, 1400, 0.9177, 0.9441, "Wilson")
    return replace(
        facts,
        before=costing(
            facts.before,
            by_operation={"convolution": 9600, "batch_norm": 576},
            dispatched={"convolution": 9600},
        ),
        after=costing(
            facts.after, by_operation={"convolution": 5400}, dispatched={"convolution": 5400}
        ),
        deployment=deployment,
        over_control=Estimate(
            0.02, 1400, 0.0093, 0.0307, "paired bootstrap, 10,000 resamples", 0.00036
        ),
        evidence=FileEvidence(
            files=(file, replace(file, name="model_int8.onnx", file_bytes=3_210)),
            problems=("model.onnx is not the file that the run wrote: SHA-256 0f0f, ran 1e1e.",),
            bench=Benchmark((timed, other), threads=1, batch=32, provider="CPUExecutionProvider"),
            scores=(score, replace(score, low=None, high=None, value=0.925)),
        ),
    )


def every_bound(facts: RunFacts) -> RunFacts:
    """Bounds of every kind, of a plan that was measured; the result was not exported."""
    return replace(
        facts,
        budget=Budget(params=0.6, flops=6000, latency_ms=0.5, file_bytes=0.7),
        deployment=None,
        planned=Shipped(
            latency_before=0.2345,
            latency_after=0.111,
            latency_predicted=0.11,
            bytes_before=12_345,
            bytes_after=6_789,
            bytes_predicted=None,
            round_to=8,
        ),
        expected_speedup=1.9,
    )


def free_of_flops(facts: RunFacts) -> RunFacts:
    before, after = (costing(network, flops=0) for network in (facts.before, facts.after))
    return replace(facts, before=before, after=after)


VARIANTS: dict[str, Callable[[RunFacts], RunFacts]] = {
    "whole": lambda facts: facts,
    "no data": no_data,
    "not deployed": lambda facts: replace(facts, deployment=None),
    "not exportable": lambda facts: replace(
        facts, deployment=f"the exporter does not take {NASTY}"
    ),
    "one network": lambda facts: replace(facts, other=None),
    "no test split": lambda facts: of_all(
        facts, lambda network: scored(network, test=None, test_samples=0)
    ),
    "lower is better": lambda facts: replace(
        facts, metric=Metric("mean squared error", higher_is_better=False)
    ),
    "set dropped": set_dropped,
    "many layers": many_layers,
    "nasty names": nasty_names,
    "no layers": no_layers,
    "free of flops": free_of_flops,
    "every bound": every_bound,
    "with evidence": with_evidence,
}


def make_history() -> History:
    """Three phases of both networks, the second of which grows dendrites in one of them."""
    phases = [(0, "neuron", 0, 3), (1, "dendrite", 1, 2), (2, "neuron", 1, 3)]
    records = []
    for stage, best in (("dendrites", 0.9442), ("width", 0.9242)):
        for phase, kind, sets, epochs in phases:
            for epoch in range(epochs):
                is_dendrite = kind == "dendrite" and stage == "dendrites"
                record: dict[str, Any] = {
                    "stage": stage,
                    "phase": phase,
                    "kind": "dendrite" if is_dendrite else "neuron",
                    "epoch": epoch,
                    "sets": sets,
                    "loss": 0.5,
                    "metric": best - 0.01 * (2 - phase) - 0.01 * abs(epoch - 1),
                    "steps": 9,
                    "lr": 0.001,
                    "seconds": 0.5,
                }
                if is_dendrite:
                    record |= {"correlation": 0.125 + 0.25 * epoch, "improved": 3}
                    record["scores"] = {"a": [0.01 * i for i in range(11)], "b": [0.1] * 11}
                records.append(record)
    return History(records)


def make_variant(name: str) -> tuple[RunFacts, History]:
    """Return facts and history of a variant."""
    facts = VARIANTS[name](make_facts())
    return facts, make_history() if facts.after.score else History()
