"""Which line of the user's code an error, or a moment of a trace, comes from."""

import linecache
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

__all__ = ["line_of", "watched"]

# Whose lines are not the user's.
OWN = {"torch", "pbcompress", "onnxscript", "onnx_ir", "onnx", "logging", "contextlib", "inspect"}
SPECIALIZATIONS = logging.getLogger("torch.fx.experimental.symbolic_shapes")
FIXED = re.compile(r"eval Eq\((s\d+), (\d+)\)")


def line_of(error: BaseException) -> str | None:
    """Return the innermost line of the user's code in the traces of an error and of its causes.

    Example:
        >>> code = compile("torch.zeros(2).reshape(3)", "net.py", "exec")
        >>> try:
        ...     exec(code, {"torch": torch, "__name__": "net"})
        ... except RuntimeError as err:
        ...     line_of(err)
        'net.py, line 1, in <module>'
    """
    found: str | None = None
    seen: BaseException | None = error
    while seen is not None:
        trace = seen.__traceback__
        while trace is not None:
            noted = trace.tb_frame.f_locals.get("node")
            if isinstance(noted, torch.fx.Node):  # the exporter was at this operation
                found = _noted_line(noted) or found
            elif _is_users(trace.tb_frame):
                found = _described(trace.tb_frame, trace.tb_lineno)
            trace = trace.tb_next
        seen = seen.__cause__
    return found


def _is_users(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__", "")).split(".")[0]
    return package not in OWN and not frame.f_code.co_filename.startswith("<frozen")


def _described(frame: FrameType, number: int) -> str:
    return _place(frame.f_code.co_filename, number, frame.f_code.co_name)


def _place(file: str, number: int, function: str) -> str:
    code = linecache.getline(file, number).strip()
    return f"{file}, line {number}, in {function}" + (f": {code}" if code else "")


def _noted_line(node: Any) -> str | None:
    """Return the last line outside of torch in the trace that torch.export noted for a node."""
    entries = re.findall(r'File "(.+?)", line (\d+), in (\S+)', node.meta.get("stack_trace") or "")
    own = [entry for entry in entries if "/torch/" not in entry[0].replace("\\", "/")]
    return _place(own[-1][0], int(own[-1][1]), own[-1][2]) if own else None


class _Watch(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: dict[int, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        match = FIXED.search(record.getMessage())
        frame: FrameType | None = sys._getframe()
        while match and frame is not None and not _is_users(frame):
            frame = frame.f_back
        if match and frame is not None:
            self.lines.setdefault(int(match[2]), _described(frame, frame.f_lineno))


@contextmanager
def watched() -> Iterator[dict[int, str]]:
    """Collect, while torch.export traces, the line of the user at which a size became fixed."""
    watch, level = _Watch(), SPECIALIZATIONS.level
    handlers, propagate = SPECIALIZATIONS.handlers, SPECIALIZATIONS.propagate
    SPECIALIZATIONS.handlers, SPECIALIZATIONS.propagate = [watch], False
    SPECIALIZATIONS.setLevel(logging.INFO)
    try:
        yield watch.lines
    finally:
        SPECIALIZATIONS.handlers, SPECIALIZATIONS.propagate = handlers, propagate
        SPECIALIZATIONS.setLevel(level)
