"""What this machine can do, in a few lines."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from alignment_core.failures import HostError
from alignment_core.operation import STAGE_PYTHON
from alignment_core.package_versions import versions_in
from alignment_core.redaction import redact
from alignment_core.sharing import STORE
from tasks.tracking import tracking_uri

GPU_EXTRA = "`python3 -m flows.bootstrap install gpu` installs it"


def examine(root: Path) -> Iterator[tuple[str, str]]:
    """(what, finding) pairs, the cheap ones first."""
    yield "python", f"{platform.python_version()} ({sys.executable})"
    for package in ("torch", "transformers", "prefect", "mlflow", "math-verify", "flash-attn"):
        yield package, package_version(package)
    yield "vllm", vllm_line()
    yield "cores", str(os.cpu_count())
    yield "disk", disk_line(root)
    yield "prefect server", redact(os.environ.get("PREFECT_API_URL", "")) or "embedded (PREFECT_API_URL is not set)"
    yield "tracking", redact(tracking_uri(root))
    yield "store", store_line(root)
    from alignment_core.hardware import devices

    yield from devices()


def package_version(package: str) -> str:
    """Installed version, or what installs it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed" + (f": {GPU_EXTRA}" if package in {"vllm", "flash-attn"} else "")


def vllm_line() -> str:
    """Version of vllm, and whose interpreter has it."""
    python = os.environ.get(STAGE_PYTHON)
    if not python:
        return package_version("vllm")
    try:
        found = versions_in(python, ("vllm",))["vllm"]
    except HostError as error:
        return str(error)
    return f"{found} in {python}, which runs the stages that sample with it ({STAGE_PYTHON})"


def store_line(root: Path) -> str:
    """Where artifacts lie."""
    own = root / "data" / "store"
    shared = os.environ.get(STORE, "").strip()
    if shared:
        from alignment_core.remote import RemoteFolder, StoreError

        try:
            RemoteFolder(shared)
        except StoreError as error:
            return str(error)
    return f"{redact(shared)}, with {own} as its cache" if shared else f"{own}, of this host alone ({STORE} is not set)"


def disk_line(root: Path) -> str:
    """Free space where the root is, or would be."""
    existing = next(path for path in (root, *root.parents) if path.exists())
    usage = shutil.disk_usage(existing)
    writable = "" if os.access(existing, os.W_OK) else "; NOT WRITABLE: choose another --root"
    return f"{usage.free / 1e9:.0f} GB free of {usage.total / 1e9:.0f} GB at {existing}{writable}"
