"""Raw lines of a benchmark: one JSON object a line, in a plain file or in a packed one.

A run appends to a plain file. A finished one is packed by ``gzip -9n lines.jsonl``, which gives the
same bytes for the same lines, and stands beside its script; ``gunzip -k`` unpacks it.
"""

import gzip
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["DOCS", "Line", "append_line", "named_lines", "read_lines"]

Line = dict[str, Any]
ROOT = Path(__file__).parents[1]
PACKED = "lines.jsonl.gz"
DOCS = ROOT / "docs" / "benchmarks"


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a file, packed or plain; none where there is no file."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    return [json.loads(line) for line in text.decode().splitlines()]


def named_lines(script: str) -> list[Line]:
    """Return the lines of the file that a command names, or of the packed one beside its script."""
    return read_lines(Path(sys.argv[1]) if sys.argv[1:] else Path(script).with_name(PACKED))


def append_line(path: Path, line: Line) -> None:
    """Add a line, and the commit that it was made at, to a plain file."""
    with path.open("a") as file:
        file.write(json.dumps(line | {"commit": _commit()}) + "\n")


@cache
def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return found.stdout.strip() or "unknown"
