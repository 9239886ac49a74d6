"""JSON data with one value changed, for readers that must refuse what does not fit."""

import copy
import json
from collections.abc import Iterable, Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

GONE = object()
OTHERS = {"gone": GONE, "null": None, "text": "x", "number": -7, "object": {"kind": []}}
Place = tuple[str | int, ...]


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Yield the path to every value within JSON data."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*at, key)
            yield from places(part, (*at, key))


def changes(path: Path, within: Place, others: Iterable[str] = OTHERS) -> Iterator[Place]:
    """Write a file anew with one value below ``within`` changed; yield where, and so on."""
    whole = json.loads(path.read_text())
    for place in places(reduce(getitem, within, whole), within):
        for other in map(OTHERS.__getitem__, others):
            data = copy.deepcopy(whole)
            holder: Any = reduce(getitem, place[:-1], data)
            if other is GONE:
                del holder[place[-1]]
            else:
                holder[place[-1]] = other
            path.write_text(json.dumps(data))
            yield place
