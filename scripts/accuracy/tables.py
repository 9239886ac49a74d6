"""Pages of accuracy from their cells, and nothing else.

    python -m scripts.accuracy.tables                     # every page from its packed lines
    python -m scripts.accuracy.tables accuracy --plot     # one, and its picture

A page is made of its cells alone (``docs/benchmarks/NAME.csv``), and these of its lines.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.accuracy.cells import CONTROL, Cell, cells_of, from_csv, to_csv
from scripts.lines import DOCS, read_lines

__all__ = ["PAGES", "Page", "write"]

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Page:
    """A page of ``docs/benchmarks`` and what it is made from.

    Attributes:
        title: Its heading; empty where there are cells and no page.
        lines: Packed lines.
        intro: Text that stands first.
        control: The arm that others are compared with.
        speeds: Packed lines of `latency.py`; None where a page tells no speed.
    """

    title: str
    lines: Path
    intro: Path
    control: str = CONTROL
    speeds: Path | None = None

    def cells(self) -> list[Cell]:
        """Return the cells of the lines."""
        return cells_of(read_lines(self.lines), self.control)

    def text(self, cells: Sequence[Cell]) -> str:
        """Return the page: what was run, how each arm fared over all cells, and every cell."""
        out = [f"# {self.title}", "", self.intro.read_text().rstrip(), ""]
        if any(cell.arm != self.control for cell in cells):
            out += [*_summary(cells, self.control), ""]
        timed = read_lines(self.speeds) if self.speeds else []
        speeds = {
            (line["task"], line["target"], line["arm"]): line["speed"]
            for line in timed
            if "speed" in line
        }
        for task in dict.fromkeys(cell.task for cell in cells):
            own = [cell for cell in cells if cell.task == task]
            out += [f"## {task}", "", _original(own[0]), ""]
            for target in sorted({cell.target for cell in own}, reverse=True):
                arms = [cell for cell in own if cell.target == target]
                out += [*_table(target, arms, self.control, speeds), ""]
        return "\n".join(out).rstrip() + "\n"


def _page(
    name: str, title: str, lines: str = "", control: str = CONTROL, speeds: Path | None = None
) -> Page:
    packed = HERE / "lines" / f"{lines or name}.jsonl.gz"
    return Page(title, packed, HERE / "intros" / f"{name}.md", control, speeds)


PEERS, CONTEXT = HERE.parent / "peers", HERE.parent / "context"
PAGES = {
    "accuracy": _page("accuracy", "Do dendrites pay?"),
    "equal_flops": _page("equal_flops", "Do dendrites pay?"),
    "last_layer": _page("last_layer", "A dendrite on the last layer alone"),
    "wide_first": _page("wide_first", "A wide first layer"),
    "allocation": _page("allocation", "Where width belongs"),
    "balanced": _page(
        "balanced", "Dendrites beside balanced widths", "allocation", "width, balanced"
    ),
    "trials": _page("trials", ""),
    "tradeoff": _page(
        "tradeoff",
        "Accuracy against speed, at one size",
        control="balanced, own rate",
        speeds=HERE / "lines" / "tradeoff_speed.jsonl.gz",
    ),
    "default": _page("default", "A quarter of the size", control="default"),
    "absorbed": _page(
        "absorbed", "Dendrites that fold away, and averaged weights", control="default"
    ),
    "context": Page(
        "Dendrites that multiply",
        CONTEXT / "lines.jsonl.gz",
        CONTEXT / "intro.md",
        speeds=CONTEXT / "speeds.jsonl.gz",
    ),
    "peers": Page("Beside other toolkits", PEERS / "lines.jsonl.gz", PEERS / "intro.md"),
}


def _original(cell: Cell) -> str:
    network = f"{cell.base_params:,} parameters, {cell.base_test:.2f} % on test"
    return f"Original network: {network}; {cell.steps:,} optimizer steps in every arm."


def _summary(cells: Sequence[Cell], control: str) -> list[str]:
    out = [f"| arm | cells | better than {control} | no difference seen | worse | mean, points |"]
    out += ["| --- | --- | --- | --- | --- | --- |"]
    for arm in dict.fromkeys(cell.arm for cell in cells):
        own = [cell.against for cell in cells if cell.arm == arm and cell.against is not None]
        if own:
            verdicts = [difference.verdict for difference in own]
            mean = statistics.mean(difference.mean for difference in own)
            counts = " | ".join(str(verdicts.count(v)) for v in (1, 0, -1))
            out.append(f"| {arm} | {len(own)} | {counts} | {mean:+.2f} |")
    runs = sum(cell.seeds for cell in cells)
    compared = sum(cell.against is not None for cell in cells)
    said = f"{runs:,} runs, {compared} comparisons with {control}"
    return [*out, "", f"{said}: {compared / 40:.0f} on each side are expected by chance alone."]


def _table(
    target: float,
    arms: Sequence[Cell],
    control: str,
    speeds: Mapping[tuple[str, float, str], float],
) -> list[str]:
    seeds = sorted({cell.seeds for cell in arms})
    out = [f"Target {target:.3g} of the parameters, {'-'.join(map(str, seeds))} seeds:", ""]
    head = ["arm", "parameters", "FLOPs", "sets", "test, %", f"against {control}", "on validation"]
    out += [_row([*head, *(["times as fast"] if speeds else [])])]
    out += [_row(["---"] * (len(head) + bool(speeds)))]
    for cell in sorted(arms, key=lambda cell: cell.arm != control):
        is_better = cell.against is not None and cell.against.verdict > 0
        row = [
            f"**{cell.arm}**" if is_better else cell.arm,
            f"{cell.params:,.0f}", f"{cell.flops:,.0f}", f"{cell.sets:.2g}", f"{cell.test:.2f}",
            str(cell.against or ""), str(cell.against_val or ""),
        ]  # fmt: skip
        speed = speeds.get((cell.task, cell.target, cell.arm))
        out.append(_row([*row, *([f"{speed:.2f}" if speed else ""] if speeds else [])]))
    return out


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write(page: Page, name: str, folder: Path) -> list[Cell]:
    """Write the file of cells and the page into a folder, and return the cells."""
    text = to_csv(page.cells())
    (folder / f"{name}.csv").write_text(text)
    cells = from_csv(text)
    if page.title:
        (folder / f"{name}.md").write_text(page.text(cells))
    return cells


def main(argv: Sequence[str] | None = None) -> int:
    """Write pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PAGES)}; all if left out")
    parser.add_argument("--folder", type=Path, default=DOCS, help="where to write")
    parser.add_argument("--plot", action="store_true", help="draw NAME.svg too")
    options = parser.parse_args(argv)
    for name in options.names or PAGES:
        cells = write(PAGES[name], name, options.folder)
        if options.plot:
            from scripts.accuracy.plot import plot

            plot(cells, options.folder / f"{name}.svg", PAGES[name].control)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
