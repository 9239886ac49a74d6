"""The picture of the README: accuracy and speed of the original, ours and torch-pruning.

python -m scripts.front.glance docs/assets/glance.svg
"""

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from scripts.lines import PACKED, Line, read_lines
from scripts.paired import half_width
from scripts.speed.arms import DEFAULT, PEER
from scripts.speed.tables import rows_of, speed_up

__all__ = ["accuracies", "picture", "speeds"]

SCRIPTS = Path(__file__).parents[1]
TASKS = {"digits_mlp": "handwritten digits", "watch_cnn": "smart watch"}
ARMS = {"original": "original", "auto": "ours", PEER: "torch-pruning"}
MODES = {DEFAULT: "ours", "fast": "ours, fast", PEER: "torch-pruning"}
CLASSES = {"original": "was", "ours": "ours", "ours, fast": "fast", PEER: "peer"}
STYLE = """\
svg { --page: #ffffff; --ink: #1a1c20; --muted: #5b616c; --rule: #e2e3e7;
  --was: #8d95a3; --ours: #2454c6; --fast: #84abff; --peer: #b76a00;
  font: 14px system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif }
@media (prefers-color-scheme: dark) { svg { --page: #131519; --ink: #eceded; --muted: #a5abb6;
  --rule: #30343c; --was: #79818f; --ours: #84abff; --fast: #3f6fd8; --peer: #eaa945 } }
.page { fill: var(--page) } text { fill: var(--ink) } .muted { fill: var(--muted); font-size: 13px }
.head { font-weight: 600; font-size: 17px } .name { font-weight: 600 } .end { text-anchor: end }
.was { fill: var(--was); stroke: var(--was) } .ours { fill: var(--ours); stroke: var(--ours) }
.fast { fill: var(--fast); stroke: var(--fast) } .peer { fill: var(--peer); stroke: var(--peer) }
line { stroke-width: 2 } .rule { stroke: var(--rule); stroke-width: 1 } rect { stroke: none }"""
WIDTH, HEIGHT, MIDDLE = 860, 336, 420
Values = dict[str, dict[str, tuple[float, ...]]]


def accuracies(lines: Iterable[Line]) -> Values:
    """Return test accuracy in per cent, and half of its 95 % interval over seeds."""
    found: dict[str, dict[str, dict[int, float]]] = {name: {} for name in TASKS.values()}
    for line in lines:
        own, seed = found[TASKS[line["task"]]], line["seed"]
        own.setdefault("original", {})[seed] = 100 * line["base"]["test"]
        if line["arm"] in ARMS:
            own.setdefault(ARMS[line["arm"]], {})[seed] = 100 * line["test"]
    return {
        task: {
            name: (statistics.mean(own[name].values()), half_width(list(own[name].values())))
            for name in ARMS.values()
        }
        for task, own in found.items()
    }


def speeds(lines: Sequence[Line]) -> Values:
    """Return speed-ups: geometric mean, least and most over the networks."""
    timed = [line for line in lines if "network" in line]
    found: Values = {}
    for target, label in ((0.5, "half of the parameters"), (0.25, "a quarter")):
        rows = rows_of(timed, target).values()
        found[label] = {}
        for arm, name in MODES.items():
            own = [speed for arms in rows if (speed := speed_up(arms.get(arm)))]
            found[label][name] = (statistics.geometric_mean(own), min(own), max(own))
    return found


def picture(accuracy: Mapping[str, Mapping[str, tuple[float, ...]]], speed: Values) -> str:
    """Return the picture."""
    body = [
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        _text(24, 34, "Accuracy at a quarter of the size", "head"),
        _text(24, 55, "test, per cent; mean of five seeds, 95 % interval", "muted"),
        *_accuracy_panel(accuracy),
        _text(MIDDLE + 24, 34, "Speed at half and a quarter of the size", "head"),
        _text(MIDDLE + 24, 55, "times the original's; mean and range of twelve networks", "muted"),
        *_speed_panel(speed),
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img">\n<title>Accuracy and speed of compressed '
        f"networks beside the original and torch-pruning</title>\n<style>\n{STYLE}\n</style>\n"
    )
    return head + "\n".join(body) + "\n</svg>\n"


def _accuracy_panel(values: Mapping[str, Mapping[str, tuple[float, ...]]]) -> list[str]:
    out, y = [], 92
    for task, own in values.items():
        low = min(mean - half for mean, half in own.values())
        high = max(mean + half for mean, half in own.values())
        scale = 200 / (high - low)
        out.append(_text(24, y, task, "name"))
        for name, (mean, half) in own.items():
            y += 28
            x, reach, kind = 140 + (mean - low) * scale, half * scale, CLASSES[name]
            out += [
                _text(24, y, name, "muted"),
                f'<line class="{kind}" x1="{x - reach:.1f}" x2="{x + reach:.1f}" '
                f'y1="{y - 5}" y2="{y - 5}"/>',
                f'<circle class="{kind}" cx="{x:.1f}" cy="{y - 5}" r="5"/>',
                _text(MIDDLE - 24, y, f"{mean:.1f}", "end"),
            ]
        y += 48
    return out


def _speed_panel(values: Values) -> list[str]:
    name_at, left = MIDDLE + 24, MIDDLE + 160
    out, y = [], 92
    scale = 190 / max(own[2] for arms in values.values() for own in arms.values())
    for label, arms in values.items():
        out.append(_text(name_at, y, label, "name"))
        for name, (mean, least, most) in arms.items():
            y += 28
            kind, ends = CLASSES[name], (left + least * scale, left + most * scale)
            out += [
                _text(name_at, y, name, "muted"),
                f'<rect class="{kind}" x="{left}" y="{y - 11}" height="12" '
                f'width="{mean * scale:.1f}" rx="2"/>',
                f'<line class="{kind}" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y - 5}" '
                f'y2="{y - 5}" opacity=".5"/>',
                _text(WIDTH - 24, y, f"{mean:.2f}", "end"),
            ]
        y += 48
    one = left + scale
    return [*out, f'<line class="rule" x1="{one:.1f}" x2="{one:.1f}" y1="100" y2="{y - 30}"/>']


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>'


def made() -> str:
    """Return the picture of the packed lines."""
    peers, timed = (read_lines(SCRIPTS / name / PACKED) for name in ("peers", "speed"))
    return picture(accuracies(peers), speeds(timed))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(made())
