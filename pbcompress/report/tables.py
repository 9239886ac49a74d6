"""Tables of a result, made from its facts alone."""

from collections.abc import Sequence

from pbcompress.comparison.intervals import Estimate
from pbcompress.core.text_tables import Table, figure, signed_figure, speed_up
from pbcompress.onnx_files.benchmark import Benchmark
from pbcompress.runs.contenders import Score, Split
from pbcompress.runs.facts import ContenderFacts, RunFacts
from pbcompress.training.history import Stage

__all__ = [
    "NAMES",
    "before_after",
    "dendrite_account",
    "is_trial_only",
    "layer_widths",
    "shipped_files",
]

NAMES = {Stage.DENDRITES: "with dendrites", Stage.WIDTH: "width alone"}
SPLITS: tuple[Split, ...] = ("val", "test")


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _kept(before: float | None, after: float | None) -> str:
    return f"{after / before:.1%}" if before and after is not None else ""


def _metric(score: Score | None, split: Split) -> str:
    value = score.on(split) if score else None
    if score is None or value is None:
        return "-"
    return f"{figure(value)} (n={score.samples(split):,})"


def _change(before: Score | None, after: Score | None, split: Split) -> str:
    old, new = (score.on(split) if score else None for score in (before, after))
    return "" if old is None or new is None else signed_figure(new - old)


def before_after(facts: RunFacts) -> Table:
    """Return the table of the original against the result."""
    before, after = facts.before, facts.after
    rows: list[Sequence[str]] = [("", "before", "after", "after / before")]
    for label, old, new in (
        ("parameters", before.cost.params, after.cost.params),
        ("FLOPs (multiply-adds)", before.cost.flops, after.cost.flops),
    ):
        rows.append((label, _count(old), _count(new), _kept(old, new)))
    counts = before.cost.dispatched, after.cost.dispatched
    second = [sum(count.values()) for count in counts if count is not None]
    if len(second) == 2:
        rows.append(("FLOPs by torch's counter", *map(_count, second), _kept(*second)))
    shipped = facts.shipped
    if shipped:
        sizes = shipped.bytes_before, shipped.bytes_after
        rows.append(("ONNX file, bytes", _count(sizes[0]), _count(sizes[1]), _kept(*sizes)))
        times = shipped.latency_before, shipped.latency_after
        medians = (f"{time.median:.3f}" for time in times)
        rows.append(("ONNX Runtime, median ms", *medians, speed_up(times[1].ratio)))
    scores = before.score, after.score
    for split in SPLITS:
        if after.score and after.score.on(split) is not None:
            values = [_metric(score, split) for score in scores]
            rows.append((f"{facts.metric.name}, {split}", *values, _change(*scores, split)))
    return rows


def shipped_files(facts: RunFacts) -> Table | None:
    """Return what the shipped files are, each in a column; None where nothing was exported."""
    evidence = facts.evidence
    files = evidence.files if evidence else ()
    if not files and facts.shipped:
        files = (facts.shipped.file,)
    if not files:
        return None
    rows: list[Sequence[str]] = [
        ("", *(file.name for file in files)),
        ("SHA-256, its first digits", *(file.sha256[:12] for file in files)),
        ("bytes", *(_count(file.file_bytes) for file in files)),
        ("weights", *(_count(file.weights) for file in files)),
        ("FLOPs of the graph", *(_count(file.flops) for file in files)),
        ("peak activations, bytes", *(_count(file.peak_activations) for file in files)),
        ("operator set", *(_count(file.opset) for file in files)),
        ("nodes", *(_count(sum(file.operations.values())) for file in files)),
    ]
    if evidence and isinstance(evidence.bench, Benchmark):
        rows += _timed_rows(evidence.bench)
    if evidence and evidence.scores:
        label = f"{facts.metric.name} in ONNX Runtime (n={evidence.scores[0].samples:,})"
        rows.append((label, *map(_interval, evidence.scores)))
    return rows


def _timed_rows(timed: Benchmark) -> list[Sequence[str]]:
    files, batch = timed.files, timed.batch
    many = [file.throughput for file in files]
    speeds = [None if time is None else batch * 1000 / time.median for time in many]
    return [
        ("batch 1, median ms", *(f"{file.latency.median:.3f}" for file in files)),
        ("batch 1, 95th percentile ms", *(f"{file.latency.p95:.3f}" for file in files)),
        (f"batch {batch}, samples a second", *map(_count, speeds)),
        ("resident memory, bytes", *(_count(file.peak_memory) for file in files)),
    ]


def _interval(score: Estimate) -> str:
    ends = ""
    if score.low is not None and score.high is not None:
        ends = f" ({figure(score.low)} to {figure(score.high)})"
    return f"{figure(score.value)}{ends}"


def layer_widths(facts: RunFacts) -> Table:
    """Return the width of every layer before and after, dendrites beside it."""
    rows: list[Sequence[str]] = [("layer", "kind", "before", "after", "dendrites", "note")]
    after = facts.after.cost.by_layer
    for name, layer in facts.before.cost.by_layer.items():
        if layer.width is None:
            continue
        wrapped = after.get(f"{name}.base_layer")
        now = wrapped or after.get(name, layer)
        sets = f"{facts.after.sets} set(s)" if wrapped else ""
        note = facts.left_alone.get(name, "") if now.width == layer.width else ""
        rows.append((name, layer.kind, str(layer.width), str(now.width), sets, note))
    return rows


def is_trial_only(contender: ContenderFacts, facts: RunFacts) -> bool:
    """Tell whether a network lost the trial and was trained no further."""
    return contender.trial is None and facts.after.trial is not None


def dendrite_account(facts: RunFacts) -> Table | None:
    """Return what dendrites brought and cost beside width alone; None if only one was trained."""
    if not facts.other:
        return None
    metric = facts.metric.name
    both = sorted(facts.contenders, key=lambda one: one.name)  # "dendrites" before "width"
    names = [
        NAMES[one.name] + (", trial only" if is_trial_only(one, facts) else "") for one in both
    ]
    rows: list[Sequence[str]] = [
        ("", *names),
        ("chosen", *("yes" if one is facts.after else "no" for one in both)),
        ("parameters", *(_count(one.cost.params) for one in both)),
        ("of them in dendrites", *(_count(one.dendrite_params) for one in both)),
        ("dendrite sets", *(_count(one.sets) for one in both)),
        ("dendrite sets, absorbed", *(_count(one.absorbed) for one in both)),
        ("FLOPs", *(_count(one.cost.flops) for one in both)),
        ("optimizer steps", *(_count(one.steps) for one in both)),
    ]
    if facts.after.trial is not None:
        label = f"{metric}, val, after the trial"
        rows.append((label, *(figure(_after_trial(one)) for one in both)))
    for split in SPLITS:
        rows.append((f"{metric}, {split}", *(_metric(one.score, split) for one in both)))
    return rows


def _after_trial(contender: ContenderFacts) -> float:
    if contender.trial is not None:
        return contender.trial
    assert contender.score is not None  # of validation, where the trial ended it
    return contender.score.val
