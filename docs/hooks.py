"""Lets pages of the repository be pages of the site: links that lead out of it, and the log."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
LOG = "changelog.md"
INDEX = {"benchmarks": "results.md"}  # folders that pages link to


def on_files(files: Files, config: Any) -> Files:
    """Add the changelog, which stands beside the README."""
    text = (ROOT / "CHANGELOG.md").read_text()
    files.append(File.generated(config, LOG, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links that leave the folder of the pages lead to the repository."""
    folder = posixpath.dirname(page.file.src_uri)

    def there(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        if re.match(r"[a-z]+:", path):
            return match[0]
        base = "" if page.file.src_uri == LOG else posixpath.join("docs", folder)
        target = posixpath.normpath(posixpath.join(base, path))
        inside = target.removeprefix("docs/")
        if target.startswith("docs/") and inside in INDEX:
            return f"]({posixpath.relpath(INDEX[inside], folder or '.')}{anchor})"
        if target.startswith("docs/"):
            return f"]({posixpath.relpath(inside, folder or '.')}{anchor})"
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"]({config['repo_url']}/{kind}/main/{target}{anchor})"

    if folder == "benchmarks":
        markdown = with_summary(markdown, page.file.src_uri)
    parts = CODE.split(markdown)  # every second one is code
    return "".join(part if at % 2 else LINK.sub(there, part) for at, part in enumerate(parts))


def with_summary(markdown: str, uri: str) -> str:
    """Put what the page of results says of a page under its title."""
    results = (ROOT / "docs" / "results.md").read_text()
    blocks = re.split(r"\n\n|\n(?=- )", results)
    own = [block for block in blocks if f"]({uri})" in block]
    if not own:
        raise ValueError(f"docs/results.md has no summary of {uri}")
    text = re.sub(r" \(?\[[^\]]+\]\(benchmarks/[^)]+\)\)?", "", " ".join(own[0].split()))
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text.removeprefix("- "))
    title, _, rest = markdown.partition("\n")
    return f'{title}\n\n!!! abstract "In short"\n    {text}\n{rest}'
