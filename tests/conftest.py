"""What holds for every test: its start, its time limit, and what it may keep for others.

Tests keep plans, networks and exported files in caches of the process, for all tests of their
file. So two processes must share the work by files, as ``make test`` does: ``-n 2 --dist
loadfile``. Any other distribution makes everything several times.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.onnx_operations import operations_made_once

HERE = Path(__file__).parent
# They register a device with torch for good; `test_other_devices.py` runs them apart.
collect_ignore = ["support/pretended_device.py", "properties/other_devices.py"]
SECONDS = {
    "": 120,
    "cli": 120,
    "config": 30,
    "comparison": 60,
    "compensation": 60,
    "core": 30,
    "costs": 60,
    "dendrites": 60,
    "export": 60,
    "frontiers": 120,
    "integrations": 120,
    "onnx_files": 60,
    "packaging": 120,
    "planning": 60,
    "properties": 120,
    "pruning": 30,
    "quantization": 60,
    "recipes": 60,
    "recovery": 60,
    "report": 60,
    "runs": 60,
    "scripts": 300,
    "structure": 30,
    "support": 30,
    "training": 60,
    "zoo": 60,
}
"""The most that one test of a folder may take, on a machine that is busy; slow ones have longer."""
SLOW_SECONDS = 600


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is measured of this machine apart from what its user keeps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PBCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def folder_of(item: pytest.Item) -> str | None:
    """Name the folder of a test; None for the examples in docstrings, which are not in here."""
    if not item.path.is_relative_to(HERE):
        return None
    return item.path.parent.relative_to(HERE).as_posix().removeprefix(".")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Limit the time of every test by its folder, where it has no limit of its own."""
    unlimited = {folder_of(item) for item in items} - {None, *SECONDS}
    if unlimited:
        raise pytest.UsageError(
            f"{sorted(unlimited)} in tests/ have no time limit. "
            "Add them to SECONDS in tests/conftest.py."
        )
    for item in items:
        folder = folder_of(item)
        if folder is not None and not item.get_closest_marker("timeout"):
            is_slow = item.get_closest_marker("slow")
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS if is_slow else SECONDS[folder]))


@pytest.fixture(scope="session", autouse=True)
def _one_table_of_operations():
    with operations_made_once():
        yield


@pytest.fixture(autouse=True)
def _same_start() -> None:
    # torch.manual_seed formats the stack once more for every kind of device that is not there
    (torch if torch.cuda.is_available() else torch.default_generator).manual_seed(0)
    torch.set_num_threads(1)
