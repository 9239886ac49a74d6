"""Pages keep their form, and every block of Python in them runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pbcompress as pb

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
FOLDERS = ("tutorials", "guide", "concepts", "reference", "project")
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *(page for folder in FOLDERS for page in sorted((ROOT / "docs" / folder).glob("*.md"))),
    ]
}
WITH_CODE = [name for name, path in PAGES.items() if BLOCK.search(path.read_text())]
SECONDS = (
    *("README", "first-comp", "give-it", "resume", "own-loop", "int8", "budgets", "free-axes"),
    *("hugging-face", "frontier"),
)


def make_model() -> nn.Module:
    """A small network that pages speak of."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


def what_pages_have(size: int = 8) -> dict[str, Any]:
    """The names that a reader has: a network, its inputs and its batches."""
    torch.manual_seed(0)
    images, labels = torch.randn(64, 1, size, size), torch.arange(64) % 3
    images += labels[:, None, None, None]
    batches = list(zip(images.split(16), labels.split(16), strict=True))
    return {
        "model": make_model().eval(),
        "make_model": make_model,
        "example_inputs": images[:2],
        "train_loader": batches,
        "val_loader": batches,
        "test_loader": batches,
        "data": pb.Data(train=batches, val=batches),
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, as a page has it from the page before."""
    folder = tmp_path_factory.mktemp("pages") / "quarter"
    have = what_pages_have()
    config = pb.RecoveryConfig(epochs=1)
    pb.compress(
        have["model"], 0.25, data=have["data"], config=config, run_dir=folder, progress=False
    )
    return folder


def test_there_are_pages_and_most_of_them_show_code() -> None:
    assert len(PAGES) >= 20
    assert len(WITH_CODE) >= 10


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if any(t in name for t in SECONDS) else ())
        for name in WITH_CODE
    ],
)
def test_the_code_of_a_page_runs_from_top_to_bottom(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGES[name].read_text()
    if "give-it-away" in name:
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "quarter").symlink_to(request.getfixturevalue("finished"))
    have = what_pages_have(64 if "budgets" in name else 8)  # work, more than calls
    for match in BLOCK.finditer(text):
        line = text[: match.start()].count("\n") + 1
        exec(compile("\n" * line + match[1], name, "exec"), have)


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_one_title_and_no_wide_prose(name: str) -> None:
    text = BLOCK.sub("", PAGES[name].read_text())
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    if Path(name).stem in ("dendrites", "promises", "research"):
        return  # older pages
    prose = [line for line in text.splitlines() if not line.startswith("|")]
    assert max(map(len, prose)) <= 105


def test_every_page_of_measurements_has_a_summary_and_a_place_on_the_site() -> None:
    results, site = (ROOT / "docs" / "results.md").read_text(), (ROOT / "mkdocs.yml").read_text()
    pages = sorted((ROOT / "docs" / "benchmarks").glob("*.md"))
    assert len(pages) >= 20
    for page in pages:
        assert f"](benchmarks/{page.name})" in results
        assert f"- benchmarks/{page.name}\n" in site


def test_every_public_name_that_users_call_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "api.md").read_text()
    listed = re.findall(r"^::: pbcompress\.(\w+)$", text, re.MULTILINE)
    assert len(listed) == len(set(listed)) > 40
    assert set(listed) <= set(pb.__all__)
    functions = {name for name in pb.__all__ if name[0].islower()}
    assert functions <= set(listed)
