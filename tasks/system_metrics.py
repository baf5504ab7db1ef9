"""What the host does while a stage runs: processor, memory, and the GPUs that the stage may use.

Measured from a thread, sent to MLflow under its own names (`system/…`, the tab "System metrics") and kept in
mlruns/system/ for a rebuild. They say nothing of a result, so no artifact holds them.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alignment_core.events import Event
from alignment_core.stage import StageSpec
from tasks.mlflow_format import read_meters, system_record
from tasks.tracker import Tracker

SETTING = "ALIGNFLOW_SYSTEM_METRICS"
"""`1` measures everywhere, `0` nowhere; not set: where there is an NVIDIA GPU."""
PERIOD = 10.0
"""Seconds between two measurements."""


class Meters:
    """The meters of this host."""

    def __init__(self) -> None:
        self._psutil: Any = import_module("psutil")
        self._nvml, self._gpus = _find_gpus()

    @property
    def has_gpu(self) -> bool:
        """Whether there is a GPU to measure."""
        return bool(self._gpus)

    def read(self) -> dict[str, float]:
        """One measurement, by MLflow's names of its own system metrics."""
        memory = self._psutil.virtual_memory()
        shown = {
            "system/cpu_utilization_percentage": float(self._psutil.cpu_percent()),
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": float(memory.percent),
        }
        for index, handle in self._gpus.items():
            used = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            shown |= {
                f"system/gpu_{index}_memory_usage_megabytes": used.used / 1e6,
                f"system/gpu_{index}_memory_usage_percentage": 100 * used.used / used.total,
                f"system/gpu_{index}_utilization_percentage": float(
                    self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu
                ),
                f"system/gpu_{index}_power_usage_watts": self._nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            }
        return shown


def _find_gpus() -> tuple[Any, dict[str, Any]]:
    """NVML and the GPUs that CUDA_VISIBLE_DEVICES leaves, by index; none where there is no NVIDIA driver."""
    if find_spec("pynvml") is None:
        return None, {}
    nvml = import_module("pynvml")
    try:
        nvml.nvmlInit()
        return nvml, dict(_visible(nvml, os.environ.get("CUDA_VISIBLE_DEVICES")))
    except nvml.NVMLError:
        return nvml, {}


def _visible(nvml: Any, visible: str | None) -> Iterator[tuple[str, Any]]:
    if visible is None:
        for index in range(nvml.nvmlDeviceGetCount()):
            yield str(index), nvml.nvmlDeviceGetHandleByIndex(index)
        return
    for name in filter(None, (part.strip() for part in visible.split(","))):
        if name.isdigit():
            yield name, nvml.nvmlDeviceGetHandleByIndex(int(name))
        elif not name.startswith("-"):
            handle = nvml.nvmlDeviceGetHandleByUUID(name.encode())
            yield str(nvml.nvmlDeviceGetIndex(handle)), handle


def open_meters() -> Meters | None:
    """The meters, if this host is to be measured.

    Raises ValueError if the setting is neither 0 nor 1, or asks for what is not installed.
    """
    wanted = os.environ.get(SETTING, "").strip()
    if wanted not in {"", "0", "1"}:
        raise ValueError(f"{SETTING}={wanted!r}: set 1 or 0, or unset it to measure where there is a GPU")
    if wanted == "0" or (wanted == "" and find_spec("pynvml") is None):
        return None
    if find_spec("psutil") is None:
        if wanted:
            raise ValueError(f"{SETTING}=1 needs psutil: pip install psutil")
        return None
    meters = Meters()
    return meters if wanted or meters.has_gpu else None


@contextmanager
def measured(tracker: Tracker, spec: StageSpec, period: float = PERIOD) -> Iterator[None]:
    """Measure this host while the block runs, for the run of a stage."""
    meters = open_meters()
    if meters is None:
        yield
        return
    done = threading.Event()
    path = system_record(tracker.root, spec.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    thread = threading.Thread(target=_measure, args=(meters, tracker, spec, path, done, period), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _measure(
    meters: Meters, tracker: Tracker, spec: StageSpec, path: Path, done: threading.Event, period: float
) -> None:
    """Steps are seconds since the stage was first measured, in whichever attempt."""
    before = read_meters(path)
    first = before[0].time if before else time.time()
    meters.read()  # the processor's share is counted from one reading to the next
    while not done.wait(period):
        now = time.time()
        event = Event(kind="point", step=int(now - first), time=now, metrics=meters.read())
        with path.open("a", encoding="utf-8") as file:
            file.write(event.model_dump_json(exclude_defaults=True) + "\n")
        tracker.meter(spec, event)
