"""What torch and the driver say of this machine's devices."""

import shutil
import subprocess
from collections.abc import Iterator

import torch


def devices() -> Iterator[tuple[str, str]]:
    """GPUs by nvidia-smi, what torch sees of them, and the attention kernel training would use."""
    smi = shutil.which("nvidia-smi")
    if smi:
        query = [smi, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        yield "nvidia-smi", subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    if not torch.cuda.is_available():
        yield "gpu", "none that torch can use: stages run on the CPU in float32"
        yield "threads", f"{torch.get_num_threads()} (set OMP_NUM_THREADS to change; results depend on it)"
        yield "attention", "torch scaled_dot_product_attention (CPU)"
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"gpu {index}", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
    yield "attention", "torch scaled_dot_product_attention (its flash kernel on this GPU)"
