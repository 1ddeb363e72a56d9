"""What all tests share: shapes checked while they run, where the real data lies, one thread a process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

if "PYTEST_XDIST_WORKER" in os.environ:
    # processes side by side whose threads wait for one another take twice as long; read when torch is loaded
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# the shape law is checked by beartype in every function of these rooms while tests run
install_import_hook(["medmeta.episodes", "medmeta.learners", "medmeta.networks"], "beartype.beartype")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real volumes; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real data not present at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The synthetic cohort that ships with the project."""
    return ROOT / "sample_data"
