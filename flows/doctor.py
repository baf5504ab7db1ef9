"""What this machine can do, in a few lines."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tasks.tracking import tracking_uri


def examine(root: Path) -> Iterator[tuple[str, str]]:
    """(what, finding) pairs, the cheap ones first."""
    yield "python", f"{platform.python_version()} ({sys.executable})"
    for package in ("torch", "transformers", "prefect", "mlflow", "math-verify", "vllm", "flash-attn"):
        yield package, package_version(package)
    yield "cores", str(os.cpu_count())
    yield "disk", disk_line(root)
    yield "prefect server", os.environ.get("PREFECT_API_URL") or "embedded (PREFECT_API_URL is not set)"
    yield "tracking", tracking_uri(root)
    from alignment_core.hardware import devices

    yield from devices()


def package_version(package: str) -> str:
    """Installed version, or what installs it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed" + (": the [gpu] extra has it" if package in {"vllm", "flash-attn"} else "")


def disk_line(root: Path) -> str:
    """Free space where the root is, or would be."""
    existing = next(path for path in (root, *root.parents) if path.exists())
    usage = shutil.disk_usage(existing)
    writable = "" if os.access(existing, os.W_OK) else "; NOT WRITABLE: choose another --root"
    return f"{usage.free / 1e9:.0f} GB free of {usage.total / 1e9:.0f} GB at {existing}{writable}"
