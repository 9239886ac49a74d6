"""Tables of words as plain text and as Markdown, and short forms of numbers."""

from collections.abc import Sequence

from pbcompress.core.markdown import Markup, as_text, without_controls

__all__ = [
    "Table",
    "compact",
    "figure",
    "render_markdown",
    "render_text",
    "signed_figure",
    "speed_up",
]

Table = Sequence[Sequence[str]]  # the first row is the header


def compact(number: float) -> str:
    """Return a count in at most five characters or so.

    Example:
        >>> compact(940), compact(24_058), compact(2_359_296)
        ('940', '24.1k', '2.36M')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            value = number / size
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f}{unit}"
    return f"{number:,.0f}"


def figure(value: float) -> str:
    """Return a metric with four decimals, or with three digits where those would show fewer.

    Example:
        >>> figure(0.91234), figure(0.0000123), figure(-412.5)
        ('0.9123', '1.23e-05', '-412.5000')
    """
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.01 else f"{value:.3g}"


def signed_figure(value: float) -> str:
    """Return the change of a metric as `figure` does, with its sign.

    Example:
        >>> signed_figure(0.5), signed_figure(-0.0000123)
        ('+0.5000', '-1.23e-05')
    """
    return f"{'' if value < 0 else '+'}{figure(value)}"


def speed_up(ratio: float) -> str:
    """Return what a ratio of times means, and say so where the result is the slower one."""
    return f"{ratio:.2f}x as fast" + (": slower than before" if round(ratio, 2) < 1 else "")


def render_text(table: Table) -> str:
    """Return a table for a terminal: the first column to the left, the others to the right."""
    table = [[without_controls(cell) for cell in row] for row in table]
    columns = [c for c in zip(*table, strict=True) if any(c[1:])]
    widths = [max(map(len, column)) for column in columns]
    is_number = [any(ch.isdigit() for cell in c[1:] for ch in cell[:1]) for c in columns]
    is_number[:1] = [False]
    lines = []
    for row in zip(*columns, strict=True):
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, is_number, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def render_markdown(table: Table) -> str:
    r"""Return a table in Markdown; cells are text, but for those that are `Markup`.

    Example:
        >>> print(render_markdown([("layer", "width"), ("a|b", "3")]))
        | layer | width |
        | --- | --- |
        | a\|b | 3 |
    """
    columns = [c for c in zip(*table, strict=True) if any(c[1:])]
    rows = list(zip(*columns, strict=True))
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(columns))
    return "\n".join(lines)


def _cell(cell: str) -> str:
    return cell if isinstance(cell, Markup) else as_text(cell, in_table=True)
