"""The host's meters: where there is a GPU, the GPUs a stage may use, the same after a rebuild."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from alignment_core.events import Event
from alignment_core.manifest import Components
from alignment_core.stage import StageSpec
from tasks import system_metrics
from tasks.mlflow_format import read_meters, system_record
from tasks.system_metrics import Meters, measured, open_meters


class NVMLError(Exception):
    pass


def fake_nvml(gpus: int) -> Any:
    """NVML with `gpus` devices, each of 100 MB; no driver for a negative number."""

    def init() -> None:
        if gpus < 0:
            raise NVMLError("driver not loaded")

    return types.SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=init,
        nvmlDeviceGetCount=lambda: gpus,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetHandleByUUID=lambda uuid: int(uuid[-1:]),
        nvmlDeviceGetIndex=lambda handle: handle,
        nvmlDeviceGetMemoryInfo=lambda handle: types.SimpleNamespace(used=25e6 * (handle + 1), total=1e8),
        nvmlDeviceGetUtilizationRates=lambda handle: types.SimpleNamespace(gpu=10 * handle),
        nvmlDeviceGetPowerUsage=lambda handle: 300_000 + handle,
        __spec__=types.SimpleNamespace(),
    )


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A host with so many GPUs and these variables."""

    def make(gpus: int, visible: str | None = None, setting: str = "") -> None:
        monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(gpus))
        monkeypatch.setenv("ALIGNFLOW_SYSTEM_METRICS", setting)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return make


def gpus_shown(meters: Meters) -> list[str]:
    return sorted(name.split("_")[1] for name in meters.read() if name.endswith("_power_usage_watts"))


def test_only_hosts_with_a_gpu_are_measured_unless_asked_for(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for gpus, setting, expected in [(2, "", True), (0, "", False), (-1, "", False), (2, "0", False), (-1, "1", True)]:
        host(gpus, setting=setting)
        assert (open_meters() is not None) is expected, (gpus, setting)
    monkeypatch.setenv("ALIGNFLOW_SYSTEM_METRICS", "yes")
    with pytest.raises(ValueError, match="set 1 or 0"):
        open_meters()


@pytest.mark.parametrize(
    ("visible", "shown"),
    [(None, ["0", "1", "2"]), ("1", ["1"]), ("2, 0", ["0", "2"]), ("GPU-abc2", ["2"]), ("", []), ("-1", [])],
)
def test_a_worker_shows_the_gpus_it_may_use(host: Any, visible: str | None, shown: list[str]) -> None:
    host(3, visible, setting="1")
    meters = Meters()
    assert gpus_shown(meters) == shown
    if "1" in shown:
        read = meters.read()
        assert read["system/gpu_1_memory_usage_percentage"] == 50.0
        assert (read["system/gpu_1_utilization_percentage"], read["system/gpu_1_power_usage_watts"]) == (10.0, 300.001)


def test_measurements_are_kept_and_go_on_counting_after_a_kill(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(1)
    told: list[Event] = []
    tracker: Any = types.SimpleNamespace(root=tmp_path, meter=lambda _spec, event: told.append(event))
    components = Components(stage="sft", config={}, inputs={}, code={}, versions={})
    spec = StageSpec(stage="sft", label="x", config={}, inputs={}, components=components, key="abc")
    with measured(tracker, spec, period=0.02):
        wait_until(lambda: len(told) >= 2, "two measurements")
    path = system_record(tmp_path, "abc")
    first = read_meters(path)
    assert first == told
    with path.open("a") as file:
        file.write('{"kind":"point","step":7,"time":1')  # a kill cut the line off
    assert read_meters(path) == first
    monkeypatch.setattr(system_metrics.time, "time", lambda: first[0].time + 100.5)
    path.write_text(path.read_text().rpartition("\n")[0] + "\n")
    with measured(tracker, spec, period=0.02):
        wait_until(lambda: len(told) > len(first), "a further measurement")
    assert {event.step for event in read_meters(path)[len(first) :]} == {100}


def test_a_host_that_is_not_measured_has_no_thread_and_no_file(host: Any, tmp_path: Path) -> None:
    host(0)
    tracker: Any = types.SimpleNamespace(root=tmp_path)
    with measured(tracker, None):  # type: ignore[arg-type]
        assert not (tmp_path / "mlruns").exists()
