"""Fixtures shared by the whole suite."""

import signal
from pathlib import Path

import pytest

# A shell that starts the suite in the background has it ignore SIGINT, and every child process would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets beside the checkout; tests that need it skip, loudly, where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}: put gsm8k/, math/, sft/, graded/ there to run this test")
    return SHARED
