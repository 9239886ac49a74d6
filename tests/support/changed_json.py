"""JSON data with one value changed, for readers that must refuse what does not fit.

A file that has a SHA-256 gets a new one, as whoever changes it on purpose would give it.
"""

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from pbcompress.core.json_documents import with_digest

GONE = object()
OTHERS = {"gone": GONE, "null": None, "text": "x", "number": -7, "object": {"kind": []}}
Place = tuple[str | int, ...]


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Yield the path to every value within JSON data."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*at, key)
            yield from places(part, (*at, key))


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON object of a file in place."""
    data = json.loads(path.read_text())
    had = data.pop("sha256_of_content", None)
    change(data)
    path.write_text(json.dumps(with_digest(data) if had else data))


def changes(path: Path, within: Place, others: Iterable[str] = OTHERS) -> Iterator[Place]:
    """Write a file anew with one value below ``within`` changed; yield where, and so on."""
    whole = json.loads(path.read_text())
    whole.pop("sha256_of_content", None)
    for place in places(reduce(getitem, within, whole), within):
        for other in map(OTHERS.__getitem__, others):
            data = copy.deepcopy(whole)
            holder: Any = reduce(getitem, place[:-1], data)
            if other is GONE:
                del holder[place[-1]]
            else:
                holder[place[-1]] = other
            path.write_text(json.dumps(with_digest(data)))
            yield place
