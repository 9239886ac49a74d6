"""The page of speed, from the lines of `run.py` and `trained.py`, failures included.

    python -m scripts.speed.tables > docs/benchmarks/speed.md

Other lines than the packed ones are named as its argument.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from scripts.lines import Line, named_lines
from scripts.paired import paired
from scripts.speed.arms import ARMS, DEFAULT, EQUAL, PEER, PRICES
from scripts.speed.timing import FORMS

GOAL = 0.85  # of the FLOP reduction
QUESTION = """\
How much faster is a network of half or a quarter of the parameters, and how much of the saved
multiply-adds is saved time? Random weights; one thread of an x86 CPU; all columns of a network
are timed in turn with the original in one run, and figures are medians of ratios to it in the
same form. *Realised* is speed-up / FLOP reduction. In the first six rows the columns *accurate*,
*fast*, *uniform* and *unrounded* are of earlier runs beside the same originals, and in the last
six the figures by form are of later ones. *torch-pruning* is its magnitude pruner in multiples
of 8 with one share for all layers, at the default's parameters as near as its steps allow; where
that is not within 1 %, *default at its size* is the default, asked for the size that it reached.
Made by `scripts/speed/run.py` and `scripts/speed/trained.py`."""
Rows = dict[str, dict[str, Line]]  # of one target: by network, then by arm


def page(lines: Sequence[Line]) -> str:
    """Return the page."""
    timed = [line for line in lines if "network" in line]
    parts = ["# How fast is what ships?", "", QUESTION, ""]
    if not lines:
        return "\n".join([*parts, "There are no lines yet."]) + "\n"
    targets = {target: rows_of(timed, target) for target in _targets(timed)}
    parts += [_answer(rows, target) for target, rows in targets.items()]
    parts += ["", "![how fast each network is](speed.svg)", ""] if targets else []
    for target, rows in targets.items():
        parts += [f"## {target:.0%} of the parameters", ""]
        later = rows_of(timed, target, later=True)
        forms = {name: {**own, **later.get(name, {})} for name, own in rows.items()}
        parts += [*_by_arm(rows), "", *_by_form(forms), "", *_failures(rows)]
    trained = [line for line in lines if "task" in line]
    if trained:
        parts += ["## Trained networks: the same size and the same steps", "", *_trained(trained)]
    return "\n".join(parts).rstrip() + "\n"


def rows_of(lines: Iterable[Line], target: float, *, later: bool = False) -> Rows:
    """Return the lines of a target by network and arm.

    Args:
        lines: Of networks.
        target: Share of the parameters.
        later: Whether to take those of later runs, in all forms.
    """
    rows: Rows = {}
    for line in lines:
        if line["target"] == target and ("forms" in line) is later:
            rows.setdefault(line["network"], {})[line["arm"]] = line
    return rows


def reduction(line: Line) -> float:
    """Return how many times fewer multiply-adds there are."""
    found: float = line["base"]["flops"] / line["flops"]
    return found


def speed_up(line: Line | None, form: str = FORMS[0]) -> float | None:
    """Return a speed-up, where it was measured."""
    return None if line is None else line.get("speed", {}).get(form)


def fair_pair(arms: Mapping[str, Line]) -> tuple[Line, Line] | None:
    """Return the default and torch-pruning at equal size, where both could be timed."""
    equal = arms.get(EQUAL, {})
    ours = arms.get(DEFAULT, {}) if "none" in equal else equal
    other = arms.get(PEER, {})
    return (ours, other) if speed_up(ours) and speed_up(other) else None


def _targets(lines: Iterable[Line]) -> list[float]:
    return sorted({line["target"] for line in lines}, reverse=True)


def _answer(rows: Rows, target: float) -> str:
    """Return the result for a target in a sentence or two."""
    ours = [arms[DEFAULT] for arms in rows.values() if speed_up(arms.get(DEFAULT))]
    if not ours:
        return ""
    speeds = [speed_up(line) or 0.0 for line in ours]
    shares = [speed / reduction(line) for speed, line in zip(speeds, ours, strict=True)]
    good = sum(share >= GOAL for share in shares)
    text = (
        f"- At {target:.0%} of the parameters the default is {_mean(speeds):.2f} times as fast "
        f"({min(speeds):.2f} to {max(speeds):.2f}; geometric mean of {len(ours)} networks, "
        f"float32, batch 1), and {_mean(shares):.2f} of the FLOP reduction is realised; {GOAL} or "
        f"more in {good} of {len(ours)}."
    )
    pairs = [pair for arms in rows.values() if (pair := fair_pair(arms))]
    if pairs:
        against = [(speed_up(a) or 0.0) / (speed_up(b) or 1.0) for a, b in pairs]
        text += (
            f" At equal size it is {_mean(against):.2f} times as fast as torch-pruning "
            f"({min(against):.2f} to {max(against):.2f}; {len(pairs)} networks)."
        )
    return text


def _by_arm(rows: Rows) -> list[str]:
    """Return the table of all arms in float32 at batch 1."""
    present = {arm for arms in rows.values() for arm in arms}
    arms = [arm for arm in ARMS if arm in present]
    out = [
        "ONNX Runtime, float32, batch 1. Speed-up (FLOP reduction, realised); the parameters of "
        "torch-pruning as a multiple of the default's.",
        "",
        f"| network | parameters | {' | '.join(arms)} | its parameters |",
        "| --- " * (len(arms) + 3) + "|",
    ]
    for name, own in rows.items():
        base = next(iter(own.values()))["base"]["params"]
        ours, other = own.get(DEFAULT, {}), own.get(PEER, {})
        both = "params" in ours and "params" in other
        near = f"{other['params'] / ours['params']:.3f}" if both else ""
        kept = f"{ours['params'] / base:.1%}" if "params" in ours else ""
        cells = [_cell(own.get(arm)) for arm in arms]
        out.append(f"| {' | '.join([name, f'{base:,}, {kept} kept', *cells, near])} |")
    means = [_mean([s for own in rows.values() if (s := speed_up(own.get(a)))]) for a in arms]
    cells = ["" if math.isnan(mean) else f"{mean:.2f}" for mean in means]
    return [*out, f"| {' | '.join(['geometric mean', '', *cells, ''])} |"]


def _cell(line: Line | None) -> str:
    speed = speed_up(line)
    if line is None or speed is None:
        return ""
    return f"{speed:.2f} ({reduction(line):.2f}, {speed / reduction(line):.2f})"


def _by_form(rows: Rows) -> list[str]:
    """Return the table of the default and torch-pruning in all forms."""
    lines = [own.get(arm) for own in rows.values() for arm in (DEFAULT, PEER)]
    forms = [form for form in FORMS if any(speed_up(line, form) for line in lines)]
    out = [
        "Speed-ups of the default / of torch-pruning by form (torch as it is, the others in ONNX "
        "Runtime) and batch:",
        "",
        f"| network | {' | '.join(forms)} |",
        "| --- " * (len(forms) + 1) + "|",
    ]
    for name, own in rows.items():
        both = (own.get(DEFAULT), own.get(PEER))
        cells = [" / ".join(_figure(speed_up(line, form)) for line in both) for form in forms]
        out.append(f"| {' | '.join([name, *cells])} |")
    return out


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _failures(rows: Rows) -> list[str]:
    """Return a line for all that could not be done."""
    out = []
    for name, own in rows.items():
        for arm, line in own.items():
            reasons = {key: line[key] for key in ("none", "no_file", "no_int8") if key in line}
            for key, reason in reasons.items():
                if not reason.startswith("NotNeededError"):
                    what = {"none": "", "no_file": ", export", "no_int8": ", int8"}[key]
                    short = " ".join(reason.replace("|", "/").split())[:160]
                    out.append(f"- {name}, {arm}{what}: {short}")
    return [*out, ""] if out else []


def _mean(values: Sequence[float]) -> float:
    return statistics.geometric_mean(values) if values else math.nan


# --- trained networks -----------------------------------------------------------------------------


def _trained(lines: Sequence[Line]) -> list[str]:
    """Return the table of trained networks.

    Raises:
        ValueError: Arms of a run took other numbers of steps, or began with other networks.
    """
    out = [
        "All from the same trained network, with the same optimizer steps, each at a learning rate "
        "of its own and with averaged weights; ours are asked for the size that torch-pruning "
        "reached. *ours*: the price of multiply-adds, those of equal shares (the default), half of "
        "the way to them from the most accurate widths (the default before), or beyond (`fast`). "
        "Accuracies in per cent, means over seeds; the difference "
        "is paired by seed, with its 95 % interval. Speed-ups (FLOP reductions) are medians over "
        "seeds, ONNX Runtime, float32, batch 1, on images of 32 x 32.",
        "",
        "| task | ours | parameters kept: ours, torch-pruning | seeds | original, test "
        "| ours, test | torch-pruning, test | difference, points "
        "| ours, speed-up | torch-pruning, speed-up |",
        "| --- " * 10 + "|",
    ]
    runs: dict[tuple[str, float], dict[str, dict[int, Line]]] = {}
    for line in lines:
        cell = runs.setdefault((line["task"], line["target"]), {})
        cell.setdefault(line["arm"], {})[line["seed"]] = line
    for (task, _), cell in runs.items():
        for arm in PRICES:
            seeds = sorted(cell.get(arm, {}).keys() & cell.get(PEER, {}).keys())
            ours, other = ([cell[own][seed] for seed in seeds] for own in (arm, PEER))
            if seeds:
                out.append(f"| {' | '.join([task, arm, *_trained_row(ours, other)])} |")
    return out


def _trained_row(ours: Sequence[Line], other: Sequence[Line]) -> list[str]:
    for a, b in zip(ours, other, strict=True):
        if (a["steps"], a["base"]) != (b["steps"], b["base"]):
            raise ValueError(f"{a['task']}, seed {a['seed']}: the arms cannot be compared")
    points = [{line["seed"]: 100 * line["test"] for line in arm} for arm in (ours, other)]
    kept = [
        statistics.mean(a["params"] / a["base"]["params"] for a in arm) for arm in (ours, other)
    ]
    fast = [
        f"{statistics.median(a['speed'][FORMS[0]] for a in arm):.2f} "
        f"({statistics.median(a['base_flops'] / a['flops'] for a in arm):.2f})"
        for arm in (ours, other)
    ]
    return [
        f"{kept[0]:.1%}, {kept[1]:.1%}",
        str(len(ours)),
        f"{100 * statistics.mean(a['base']['test'] for a in ours):.2f}",
        *(f"{statistics.mean(arm.values()):.2f}" for arm in points),
        str(paired(*points)) if len(ours) > 1 else "",
        *fast,
    ]


if __name__ == "__main__":
    print(page(named_lines(__file__)), end="")
