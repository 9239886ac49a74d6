"""What is published: a wheel with zoo, recipes and examples, and a README whose links work."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("pbcompress", "model_zoo", "examples", "README.md", "LICENSE", "pyproject.toml")
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
LINK = re.compile(r"(?:\]\(|^\[[^\]]+\]: )([^)\s]+)", re.MULTILINE)
spec = importlib.util.spec_from_file_location("setup_of_pbcompress", ROOT / "setup.py")
assert spec is not None
assert spec.loader is not None
setup = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy, because a build writes beside its sources."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*PARTS, "setup.py", "MANIFEST.in"):
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / name, ignore=ignored)
        else:
            shutil.copy(source, copy / name)
    code = f"from setuptools import build_meta; print(build_meta.build_wheel({str(out)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_has_all_that_it_needs_outside_of_a_clone(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for folder in ("pbcompress", "model_zoo"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
        wanted = {str(p.relative_to(ROOT)) for p in files if "__pycache__" not in p.parts}
        assert len(wanted) > 20
        assert wanted <= names
    examples = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert examples
    assert examples <= {Path(name).name for name in names if "share/pbcompress/examples" in name}
    assert not [name for name in names if name.startswith(("tests", "scripts", "docs"))]


def test_the_metadata_of_the_wheel_are_whole(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
    found = message_from_bytes(wheel.read(name))
    assert {url.partition(",")[0] for url in found.get_all("Project-URL")} >= {
        "Repository",
        "Documentation",
        "Issues",
        "Changelog",
    }
    assert found["Author"]
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Description-Content-Type"] == "text/markdown"
    text = str(found.get_payload())
    links = LINK.findall(text)
    assert len(links) > 12
    for link in links:
        assert re.match(r"https?://|#", link), link


def test_every_link_of_the_readme_that_leads_into_the_repository_leads_to_something() -> None:
    text = setup.with_whole_links((ROOT / "README.md").read_text(), REPOSITORY)
    own = [link for link in LINK.findall(text) if link.startswith(REPOSITORY)]
    assert len(own) > 12
    for link in own:
        kind, branch, path = link.removeprefix(f"{REPOSITORY}/").split("/", 2)
        there = ROOT / path.partition("#")[0]
        assert branch == "main"
        assert there.is_dir() if kind == "tree" else there.is_file(), link
    assert f"{REPOSITORY}/raw/main/docs/assets/glance.svg" in own


def test_links_elsewhere_and_anchors_stay() -> None:
    text = "[a](https://a.org) [b](#b) [c](mailto:c@d.org)\n[d]: https://d.org\n"
    assert setup.with_whole_links(text, "https://r") == text
