"""Drawing: inline SVG that takes its colours from the page, and pictures in files of their own.

The only module on matplotlib.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbcompress.core.tensor_files import write_bytes
from pbcompress.errors import CompressionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure

__all__ = ["COLOURS", "PRINTED", "page_chart", "write_picture"]

# matplotlib knows no CSS variables: it draws in these colours, and each is then replaced
COLOURS = {
    "accent": "#010102",
    "quiet": "#010103",
    "dendrite": "#010104",
    "ink": "#010105",
    "muted": "#010106",
    "rule": "#010107",
    "surface": "#010108",
}
PRINTED = {  # of a picture that lies in no page
    "accent": "#2454c6",
    "worse": "#d9776f",
    "quiet": "#cdd2da",
    "ink": "#1a1c20",
    "muted": "#5b616c",
    "rule": "#e2e3e7",
    "page": "#ffffff",
}


def write_picture(
    path: Path, name: str, size: tuple[float, float], draw: Callable[["Figure"], None]
) -> None:
    """Write a drawing to a file; the same drawing gives the same bytes.

    Args:
        path: A file that ends in .svg or .png.
        name: Of the drawing.
        size: Width and height in inches.
        draw: Draws on a figure.

    Raises:
        CompressionError: The ending is another one, matplotlib is not installed, or the file
            cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise CompressionError(
            f"A picture was to be written to {path}; it can be an .svg or a .png. Name one of them."
        )
    content = BytesIO()
    try:
        with _own_settings(name, PRINTED):
            from matplotlib.figure import Figure

            figure = Figure(figsize=size, layout="constrained")
            draw(figure)
            dated = {"Date": None} if kind == "svg" else {"Software": None}
            figure.savefig(content, format=kind, dpi=160, metadata=dated)
    except ImportError as err:
        raise CompressionError(
            "A picture needs matplotlib, which is not installed. Install pbcompress[report]."
        ) from err
    write_bytes(path, content.getvalue())


def page_chart(
    name: str,
    draw: Callable[["Axes"], None],
    title: str,
    wide: tuple[int, int],
    label: str = "epoch",
) -> str:
    """Return a drawing for a wide screen or paper, and one for a phone; the page shows one.

    Args:
        name: Of the drawing; its ids begin with it.
        draw: Draws on axes, in `COLOURS`.
        title: What a screen reader says.
        wide: Width and height for a desk.
        label: What the horizontal axis counts.
    """
    narrow = (340, 240 if label == "epoch" else wide[1])
    return "".join(
        _svg(f"{name}-{kind}", *size, draw, title, label)
        for kind, size in (("wide", wide), ("narrow", narrow))
    )


def _style(colours: Mapping[str, str]) -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": 12.0,
        "axes.edgecolor": colours["rule"],
        "axes.facecolor": "none",
        "axes.labelcolor": colours["muted"],
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.formatter.useoffset": False,
        "figure.facecolor": colours.get("page", "none"),
        "grid.color": colours["rule"],
        "grid.linewidth": 0.7,
        "lines.solid_capstyle": "round",
        "xtick.color": colours["rule"],
        "xtick.labelcolor": colours["muted"],
        "ytick.left": False,
        "ytick.labelcolor": colours["muted"],
    }


@contextmanager
def _own_settings(salt: str, colours: Mapping[str, str]) -> Iterator[None]:
    """Draw by our settings alone, and leave the user's as they were."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({**_style(colours), "svg.hashsalt": salt})
        yield


def _svg(
    name: str, width: int, height: int, draw: Callable[["Axes"], None], title: str, label: str
) -> str:
    with _own_settings(name, COLOURS):
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        is_by_epoch = label == "epoch"
        axes.grid(axis="y" if is_by_epoch else "x")
        axes.set_axisbelow(True)
        axes.set_xlabel(label)
        most = 8 if width > 400 else 5
        axes.xaxis.set_major_locator(MaxNLocator(most, integer=is_by_epoch))
        if is_by_epoch:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        text = StringIO()
        nothing: Mapping[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=dict(nothing))
    return _for_page(text.getvalue(), name, width, height, title)


def _for_page(text: str, name: str, width: int, height: int, title: str) -> str:
    """Turn a file of matplotlib's into an element of a page: own ids, its colours, its fonts."""
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r"xlink:href=", "href=", body)
    used = set(re.findall(r"[\"(]#([^\")]+)[\")]", body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"font-family: [^;\"]*; ", "", body)
    for variable, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r">\s+<", "><", body).strip()
    size = name.rsplit("-", 1)[1]
    return (
        f'<svg class="chart {size}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-labelledby="{name}-title"><title id="{name}-title">{escape(title)}</title>{body}\n'
    )
