"""Code that runs at the start of every Python process which a test starts."""

from pathlib import Path

import pytest


def run_in_children(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have every Python process that is started from now on run `code` first; it lies in `folder`."""
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))
