"""What this machine can do, in a few lines; imports torch only to ask it."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
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


def devices() -> Iterator[tuple[str, str]]:
    """GPUs by nvidia-smi, what torch sees of them, and the attention kernel training would use."""
    smi = shutil.which("nvidia-smi")
    if smi:
        query = [smi, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        yield "nvidia-smi", subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    import torch

    if not torch.cuda.is_available():
        yield "gpu", "none that torch can use: stages run on the CPU in float32"
        yield "threads", f"{torch.get_num_threads()} (set OMP_NUM_THREADS to change; results depend on it)"
        yield "attention", "torch scaled_dot_product_attention (CPU)"
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"gpu {index}", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
    yield "attention", "torch scaled_dot_product_attention (its flash kernel on this GPU)"
