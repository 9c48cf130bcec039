"""Collection of this suite is the same everywhere: pytest-xdist stops where two workers find different tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLLECT = """
import sys, time
real = time.time
time.time = lambda: real() + float(sys.argv[1])
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *sys.argv[2:]]))
"""


def collect(folder: Path, later: float, **environment: str) -> list[str]:
    """Return the ids of every test of the suite, as a process in ``folder`` with this environment finds them."""
    arguments = [str(later), f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}", str(ROOT / "tests")]
    done = subprocess.run(
        [sys.executable, "-P", "-c", COLLECT, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=300,
    )
    # Ids are printed relative to the working directory; what follows the first ``tests/`` is the same from anywhere.
    found = [line.partition("tests/")[2] for line in done.stdout.splitlines() if "::" in line]
    assert done.returncode == 0 and len(found) > 1000, done.stdout[-2000:] + done.stderr[-2000:]
    return found


def test_tests_do_not_depend_on_time_hash_seed_locale_processor_or_directory(tmp_path: Path) -> None:
    here = collect(ROOT, 0, PYTHONHASHSEED="1", OMP_NUM_THREADS="1")
    elsewhere = collect(
        tmp_path,
        86_400_000.5,  # almost three years on
        PYTHONHASHSEED="77",
        LC_ALL="C",
        PYTHONUTF8="0",  # else Python reads text as UTF-8 in the C locale
        PYTHONIOENCODING="utf-8",
        TZ="Asia/Kathmandu",
        ATEN_CPU_CAPABILITY="default",
        MKL_CBWR="COMPATIBLE",
        OMP_NUM_THREADS="2",
        HOME=str(tmp_path),
    )
    assert here == elsewhere
