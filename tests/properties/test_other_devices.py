"""Everything runs on a device that is not the CPU: `other_devices.py`, in a process of its own.

The device is registered with torch for good, and other tests should not meet it.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

CASES = Path(__file__).with_name("other_devices.py")
IS_KNOWN = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


@pytest.mark.timeout(600)
@pytest.mark.skipif(not IS_KNOWN, reason="this torch takes no device that is written in Python")
@pytest.mark.parametrize(
    ("chosen", "count"), [("not slow", 15), pytest.param("slow", 2, marks=pytest.mark.slow)]
)
def test_all_cases_pass_in_a_process_of_their_own(chosen: str, count: int) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-o", "timeout=0", "-m", chosen]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(CASES)],
        cwd=CASES.parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:]
    assert f"{count} passed" in run.stdout
