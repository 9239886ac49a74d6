"""What a module of the benchmark finds in a process of its own, whose memory is then its own."""

import json
import subprocess
from typing import Any

__all__ = ["child_line"]


def child_line(python: str, module: str, *arguments: str) -> dict[str, Any]:
    """Run a module, and return the JSON object that it prints last, or the end of its errors."""
    ran = subprocess.run(
        [python, "-m", module, *arguments], capture_output=True, text=True, check=False
    )
    last = ran.stdout.strip().splitlines()[-1:]
    found: dict[str, Any] = json.loads(last[0]) if last else {"error": ran.stderr.strip()[-500:]}
    return found
