"""What a resume needs to find again beside its key: the thread count and the build of torch, said aloud if not."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from alignment_core.config import SamplingConfig
from alignment_core.events import Event
from alignment_core.stage_config import GRPOStage
from alignment_core.stage_run import StageRun
from alignment_core.training_config import GRPOConfig, OptimizerConfig


def attempt(folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int | None, version: str = "2.13.0") -> list[str]:
    """One attempt at a stage that saves once; what it says as it begins. None: torch is not in use."""
    torch = None if threads is None else SimpleNamespace(get_num_threads=lambda: threads, __version__=version)
    if torch is None:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    else:
        monkeypatch.setitem(sys.modules, "torch", torch)
    heard: list[Event] = []
    run = StageRun(folder, heard.append)
    resumed_from = run.resume()
    said = [event.name for event in heard if event.kind == "say"]
    if resumed_from is None:
        run.save_checkpoint(1, lambda place: (place / "state").write_text("x"))
    run.close()
    return said


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ((1, "2.13.0"), (1, "2.13.0"), ""),
        ((1, "2.13.0"), (2, "2.13.0"), "threads 1 -> 2"),
        ((2, "2.13.0"), (2, "2.13.1"), "torch 2.13.0 -> 2.13.1"),
        ((None, ""), (2, "2.13.0"), ""),
        ((None, ""), (None, ""), ""),
    ],
)
def test_a_resume_under_another_thread_count_or_build_is_said_aloud(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: tuple[int | None, str],
    second: tuple[int | None, str],
    said: str,
) -> None:
    assert attempt(tmp_path, monkeypatch, *first) == []
    (line,) = attempt(tmp_path, monkeypatch, *second) or [""]
    assert said in line
    assert bool(line) == bool(said)
    assert not line or "not bit-equal" in line


def test_what_only_rounds_otherwise_is_in_no_key_and_is_said_aloud_on_a_resume(tmp_path: Path) -> None:
    def stage(micro_batch_tokens: int, batch_size: int, logged: int = 4, rate: float = 1e-5) -> GRPOStage:
        optimizer = OptimizerConfig(learning_rate=rate)
        grpo = GRPOConfig(micro_batch_tokens=micro_batch_tokens, rollouts_logged=logged, optimizer=optimizer)
        return GRPOStage(grpo=grpo, sampling=SamplingConfig(batch_size=batch_size), seed=0)

    large, small = stage(16_384, 256), stage(4_096, 32, logged=0)
    assert large.key_settings() == small.key_settings()
    assert large.key_settings() != stage(16_384, 256, rate=2e-5).key_settings()
    heard: list[Event] = []
    before = StageRun(tmp_path, rounding=large.rounding_settings())
    before.resume()
    before.save_checkpoint(1, lambda place: (place / "state").write_text("x"))
    before.close()
    after = StageRun(tmp_path, heard.append, rounding=small.rounding_settings())
    assert after.resume() == 1
    after.close()
    (line,) = [event.name for event in heard if event.kind == "say"]
    assert "another grpo.micro_batch_tokens 16384 -> 4096, sampling.batch_size 256 -> 32: close to" in line
