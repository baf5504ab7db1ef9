"""A stage that trains in two processes: through the stage machinery, with its deaths."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kill_root import fill_root
from safetensors.torch import load_file

from alignment_core.events import read_events
from alignment_core.stage import StageOutcome, StageSpec, run_stage
from alignment_core.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, StageSpec]]:
    """A store with what the stages start from, and their specs."""
    store = Store(tmp_path_factory.mktemp("store"))
    return store, fill_root(store)


def together(spec: StageSpec, processes: int = 2) -> StageSpec:
    """The same stage, in several processes: its key is the same."""
    return spec.model_copy(update={"config": spec.config | {"processes": processes}})


def start(store: Store, spec: StageSpec, folder: Path) -> "subprocess.Popen[str]":
    """The stage in a process of its own, a checkpoint after every step."""
    asked = folder / f"{spec.stage}.json"
    asked.write_text(spec.model_dump_json(), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-m", "alignment_core.stage_process", str(asked), str(store.root)],
        env={**os.environ, "ALIGNFLOW_CHECKPOINT_SECONDS": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def followers_of(pid: int) -> list[int]:
    """Process ids of the processes it leads."""
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", "alignment_core.followers"], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def wait_for(condition: object, seconds: float = 60.0) -> None:
    """Until a condition holds."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def difference(ours: Path, theirs: Path) -> float:
    """Norm of the difference of two models' weights, relative to the norm of the second."""
    one, other = load_file(ours / "model" / "model.safetensors"), load_file(theirs / "model" / "model.safetensors")
    squares = sum(float((one[name] - weight).double().square().sum()) for name, weight in other.items())
    return (squares / sum(float(weight.double().square().sum()) for weight in other.values())) ** 0.5


def alone(root: tuple[Store, dict[str, StageSpec]], name: str) -> StageOutcome:
    """The stage in one process, in the store of the fixture."""
    return run_stage(root[0], root[1][name])


def empty_twin(store: Store, folder: Path) -> Store:
    """A store with the same inputs and none of the results."""
    twin = Store(folder)
    for stage in ("prepare", "pretrain"):
        (folder / stage).symlink_to(store.root / stage)
    return twin


@pytest.mark.parametrize("name", ["sft", "grpo"])
def test_a_stage_in_two_processes_ends_where_one_does(
    name: str, root: tuple[Store, dict[str, StageSpec]], tmp_path: Path
) -> None:
    spec = root[1][name]
    one = alone(root, name)
    path = root[0].path(one.ref)
    points = [event for event in read_events(path) if event.kind == "point"]
    kept = path.rename(tmp_path / "alone")
    process = start(root[0], together(spec), tmp_path)
    said, complaints = process.communicate(timeout=200)
    assert process.returncode == 0, complaints
    two = StageOutcome.model_validate_json(said)
    assert two.ref.key == one.ref.key
    assert difference(root[0].path(two.ref), kept) <= 1e-6
    again = [event for event in read_events(root[0].path(two.ref)) if event.kind == "point"]
    assert [event.step for event in again] == [event.step for event in points], "one record, written once"
    for ours, theirs in zip(again, points, strict=True):
        assert ours.metrics.get("eval/accuracy") == theirs.metrics.get("eval/accuracy")
        assert ours.metrics.get("train/loss", 0.0) == pytest.approx(theirs.metrics.get("train/loss", 0.0), abs=2e-6)


def test_kill_of_the_leader_takes_the_others_along_and_the_next_run_goes_on(
    root: tuple[Store, dict[str, StageSpec]], tmp_path: Path
) -> None:
    store, specs = root
    spec = together(specs["grpo-long"])
    process = start(store, spec, tmp_path)
    checkpoints = store.root / ".work" / f"{spec.stage}-{spec.key}" / "checkpoints"

    def newest() -> int:
        return max((int(path.name) for path in checkpoints.glob("0*")), default=0)

    wait_for(lambda: followers_of(process.pid))
    before = newest()
    wait_for(lambda: newest() > before)
    (follower,) = followers_of(process.pid)
    process.kill()
    process.wait()
    wait_for(lambda: not Path(f"/proc/{follower}").exists(), 20)
    reached = newest()
    second = start(store, spec, tmp_path)
    wait_for(lambda: newest() > reached)
    second.send_signal(signal.SIGTERM)
    assert second.communicate(timeout=100)[1].count("saved after step") == 1
    assert second.returncode == 143
    wait_for(lambda: followers_of(second.pid) == [])
    marker = json.loads((checkpoints / f"{newest():08d}" / "complete.json").read_text())
    assert marker["computed_on"]["processes"] == 2


def test_a_follower_that_dies_ends_the_stage_with_its_words(
    root: tuple[Store, dict[str, StageSpec]], tmp_path: Path
) -> None:
    store, specs = root
    process = start(store, together(specs["grpo-long"]), tmp_path)
    wait_for(lambda: followers_of(process.pid))
    os.kill(followers_of(process.pid)[0], signal.SIGKILL)
    _, complaints = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "process 1 of 2 of this stage ended with code -9" in complaints
