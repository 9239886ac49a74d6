"""Lets the examples of docstrings be shown as code, whose title here is "Example:"."""

import re
from typing import Any

import griffe

TITLE = re.compile(r"^(\s*)Example:$", re.MULTILINE)


class Titles(griffe.Extension):  # type: ignore[misc]
    """Writes the title that the parser of docstrings knows."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = TITLE.sub(r"\1Examples:", obj.docstring.value)
