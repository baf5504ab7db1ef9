"""Fixtures shared by the whole suite."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from alignment_core.store import Store

# Before torch is imported, and for every child process: what is computed in several threads rounds otherwise than in
# one, so a test that compares weights of two processes needs the same number in both; and two threads on busy cores
# run several times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"

# A shell that starts the suite in the background has it ignore SIGINT, and every child process would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, and no limit of time on one: a machine that stands still for a moment is no finding.
# HYPOTHESIS_PROFILE=default draws new ones.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets beside the checkout; tests that need it skip, loudly, where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}: put gsm8k/, math/, sft/, graded/ there to run this test")
    return SHARED


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a finished smoke study, not to be changed: its stages are stand-ins, their keys real."""
    # Imported here: the suite of the vllm environment has no Prefect.
    from planned_store import make_study

    root = tmp_path_factory.mktemp("finished")
    make_study(root)
    return root


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Store:
    """A copy of that study's store, under tmp_path."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return Store(tmp_path / "data" / "store")
