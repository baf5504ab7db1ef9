"""Data parallel training: two processes on this CPU end where one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from child_code import run_in_children
from parallel_training import LOOPS, train
from safetensors.torch import load_file
from tiny_loops import TOKENIZER
from tiny_models import tiny_model

from alignment_core import engine as engine_room
from alignment_core import followers
from alignment_core.batching import TokenSequence
from alignment_core.config import ModelConfig, ScratchModelConfig
from alignment_core.engine import Engine
from alignment_core.failures import MemberError
from alignment_core.followers import Following
from alignment_core.models import tensors_by_name
from alignment_core.processes import FollowerRun, gather, interleave, own_run, process_count, share_of
from alignment_core.runs import MemoryRun
from alignment_core.study_config import StudyConfig
from alignment_core.training_config import SFTConfig
from benchmarks.local_servers import free_port

DEATHS: list[tuple[str, type[Exception], str]] = [
    (
        "raise MemoryError('out of memory: lower it')",
        MemoryError,
        "process 1 of 2 of this stage: out of memory",
    ),
    ("raise TypeError('a bug')", RuntimeError, "process 1 of 2 of this stage ended with code 1: Traceback"),
    ("import os; os.kill(os.getpid(), 9)", MemberError, "process 1 of 2 of this stage ended with code -9"),
]
SCRIPT = Path(__file__).with_name("parallel_training.py")


@pytest.mark.parametrize(("death", "kind", "words"), DEATHS)
def test_what_another_process_dies_of_is_of_its_kind(
    death: str, kind: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies = f"def require_unedited(_):\n    {death}\nfingerprint.require_unedited = require_unedited\n"
    run_in_children(tmp_path, monkeypatch, f"from alignment_core import fingerprint\n{dies}")
    task = Following(stage="prepare", settings={}, inputs={}, folder=tmp_path, code={})
    with followers._following({"RANK": "1", "WORLD_SIZE": "2"}, task) as follower:
        with pytest.raises((MemoryError, ChildProcessError)) as caught:
            follower.await_ready()
        died = follower.failure() or caught.value
    assert type(died) is kind
    assert str(died).startswith(words)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes filled."""
    out = tmp_path_factory.mktemp("together")
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
    }
    children = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(out)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [child.communicate(timeout=280)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], "\n".join(said)[-4000:]
    return out


@pytest.mark.parametrize("loop", LOOPS)
def test_two_processes_end_where_one_does(loop: str, together: Path):
    model, run = train(loop)
    first, second = (json.loads((together / f"{loop}-{rank}.json").read_text()) for rank in range(2))
    assert first["processes"] == 2
    assert second["points"] == second["lines"] == [], "only the first process writes the record"
    for (step, alone), (other, both) in zip(run.points, first["points"], strict=True):
        assert (step, alone.keys()) == (other, both.keys())
        for name, value in alone.items():
            if not name.startswith(("time/", "memory/")):
                assert both[name] == pytest.approx(value, rel=1e-6, abs=2e-6), name
    weights, trained = tensors_by_name(model), load_file(together / f"{loop}.safetensors")
    difference = torch.stack([(trained[name] - weight).norm() for name, weight in weights.items()]).norm()
    assert difference <= 1e-6 * torch.stack([weight.norm() for weight in weights.values()]).norm()


def test_a_process_alone_is_all_there_is():
    run = MemoryRun()
    assert process_count() == 1
    assert own_run(run) is run
    assert list(share_of(3)) == [0, 1, 2]
    assert gather("x") == ["x"]


def test_shares_come_back_in_order():
    assert interleave([[0, 3, 6], [1, 4], [2, 5]]) == list(range(7))
    assert interleave([[], []]) == []


def test_a_follower_reads_checkpoints_and_writes_nothing(tmp_path: Path):
    leader = MemoryRun(tmp_path)
    leader.save_checkpoint(3, lambda folder: None)
    follower = FollowerRun(leader)
    follower.emit(1, {"train/loss": 1.0})
    follower.say("x")
    follower.save_checkpoint(4, lambda folder: pytest.fail("a follower wrote a checkpoint"))
    assert not follower.checkpoint_due()
    assert follower.latest_checkpoint() == leader.latest_checkpoint() == tmp_path / "step-00000003"
    assert (leader.points, leader.lines) == ([], [])


def test_gradients_of_a_process_alone_are_left_as_they_are():
    from alignment_core.processes import sum_gradients

    layer = torch.nn.Linear(2, 1)
    layer(torch.ones(1, 2)).sum().backward()
    sum_gradients(layer)
    assert layer.weight.grad.tolist() == [[1.0, 1.0]]


def test_processes_and_vllm_do_not_go_together() -> None:
    model = ModelConfig(scratch=ScratchModelConfig(), processes=2)
    with pytest.raises(ValueError, match="serves one process"):
        StudyConfig.model_validate(
            {"name": "x", "model": model, "data": {"arithmetic": {}}, "sampling": {"backend": "vllm"}}
        )


def test_every_process_has_work_at_the_settings_as_they_come(monkeypatch: pytest.MonkeyPatch):
    engine = Engine(tiny_model(TOKENIZER), TOKENIZER, SFTConfig())
    sequences = [TokenSequence([1] * 5, [2] * (5 + row)) for row in range(16)]
    shares = []
    for rank in range(4):
        monkeypatch.setattr(engine_room, "process_count", lambda: 4)
        monkeypatch.setattr(engine_room, "share_of", lambda count, rank=rank: range(rank, count, 4))
        shares.append([row for rows, _ in engine.micro_batches(sequences) for row in rows])
    assert sorted(row for share in shares for row in share) == list(range(16))
    assert all(shares), "a process without a micro-batch would only wait"
