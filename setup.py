"""Makes the links of the README whole, for PyPI; all else is in pyproject.toml."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINK = re.compile(r"(!?\[[^\]]*\]\(|^\[[^\]]+\]: )(?![a-z]+:|#)([^)\s]+)", re.MULTILINE)


def with_whole_links(text: str, repository: str) -> str:
    """Let links of a page in the root of the repository lead there from anywhere."""

    def whole(match: re.Match[str]) -> str:
        head, path = match.groups()
        is_folder = (ROOT / path).is_dir()
        kind = "raw" if head.startswith("!") else "tree" if is_folder else "blob"
        return f"{head}{repository}/{kind}/main/{path}"

    return LINK.sub(whole, text)


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    setup(
        long_description=with_whole_links(
            (ROOT / "README.md").read_text(), project["urls"]["Repository"]
        ),
        long_description_content_type="text/markdown",
    )
