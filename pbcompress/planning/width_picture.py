"""A picture of a plan: the width of every layer before and after."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pbcompress.core.bars import ROW_INCHES, draw_bars
from pbcompress.core.drawing import write_picture

if TYPE_CHECKING:
    from pbcompress.core.drawing import Figure

__all__ = ["width_picture"]


def width_picture(widths: Mapping[str, tuple[int, int]], path: Path) -> None:
    """Write a bar for every layer: its width, and in it what remains of it.

    Args:
        widths: Width before and after, by layer, in the order of the network.
        path: A file that ends in .svg or .png.

    Raises:
        CompressionError: See `write_picture`.
    """

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        draw_bars(axes, list(widths), list(widths.values()), "output channels", "{:,}".format)
        if widths:
            figure.legend(loc="outside upper right", ncols=2, frameon=False)

    write_picture(path, "widths", (8.5, 0.9 + ROW_INCHES * len(widths)), draw)
