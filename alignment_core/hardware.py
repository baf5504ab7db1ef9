"""What torch and the driver say of this machine's devices."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from alignment_core.attention import KERNELS, choose_kernel

NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""How torch says so, on a GPU and on a CPU."""
ADVISED = "out of memory: "


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Say what to lower where torch runs out of memory.

    Raises MemoryError in place of torch's own error, or of numpy's; one that has its advice stays as it is.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text, python = str(error), isinstance(error, MemoryError)
        if text.startswith(ADVISED) if python else not any(sign in text for sign in NO_MEMORY):
            raise
        raise MemoryError(f"{ADVISED}{advice} ({text[:200].partition(chr(10))[0] or 'no details'})") from error


def devices() -> Iterator[tuple[str, str]]:
    """GPUs by nvidia-smi, what torch sees of them, and the attention kernel training would use."""
    smi = shutil.which("nvidia-smi")
    if smi:
        query = [smi, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        yield "nvidia-smi", subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    if not torch.cuda.is_available():
        yield "gpu", "none that torch can use: stages run on the CPU in float32"
        yield "threads", f"{torch.get_num_threads()} (set OMP_NUM_THREADS to change; results depend on it)"
        yield "attention", KERNELS["sdpa"]
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"gpu {index}", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
    for dtype in (torch.bfloat16, torch.float32):
        yield f"attention, {str(dtype).removeprefix('torch.')}", KERNELS[choose_kernel(torch.device("cuda"), dtype)]
