"""Kill and resume on a device: a short GRPO run killed with SIGKILL and gone on with, against two straight ones.

    python -m benchmarks.gpu.resume --out FILE [--checkpoints FOLDER] [--kill-at STEP] [--toy]

is one such run, in a process of its own; `right` starts four and compares them.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from alignment_core.config import SamplingConfig
from alignment_core.policy_gradient import train_grpo
from alignment_core.records import GradedResponse, Problem
from alignment_core.runs import MemoryRun
from alignment_core.training_config import GRPOConfig, OptimizerConfig
from benchmarks.gpu import common


class KilledRun(MemoryRun):
    """Checkpoints after every step, and dies, as a process does, when step `kill_at` is reported."""

    def __init__(self, folder: Path | None, kill_at: int | None = None) -> None:
        super().__init__(folder, checkpoint_seconds=0.0)
        self._kill_at = kill_at

    def emit(self, step: int, metrics: Mapping[str, float], total: int | None = None) -> None:
        """Keep the point; SIGKILL to this process at `kill_at`, before that step's checkpoint."""
        super().emit(step, metrics, total)
        if step == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def parity_grader(responses: Sequence[str], _: Sequence[str]) -> list[GradedResponse]:
    """Reward 1 for texts whose characters add up to an even number: noise, but a function of the response."""
    rewards = [float(sum(map(ord, text)) % 2 == 0) for text in responses]
    return [GradedResponse(format_reward=1.0, answer_reward=reward, reward=reward) for reward in rewards]


def short_grpo(folder: Path | None, out: Path, device: torch.device, toy: bool, kill_at: int | None) -> None:
    """Six steps of a small policy; weights and points go to `out`."""
    tokenizer = common.word_tokenizer(512)
    hidden, layers = (128, 2) if toy else (256, 4)
    model = common.moved(common.random_model(common.small_shape(512, hidden, layers), torch.device("cpu"), 7), device)
    problems = [Problem(id=f"p{i}", question="q", prompt=f"w{i} w{i + 1}", ground_truth="0") for i in range(16)]
    config = GRPOConfig(
        n_grpo_steps=6, rollout_batch_size=32, train_batch_size=16, group_size=4, loss_type="grpo_clip",
        optimizer=OptimizerConfig(learning_rate=1e-3), micro_batch_tokens=512,
    )  # fmt: skip
    sampling = SamplingConfig(max_tokens=16 if toy else 48)
    run = KilledRun(folder, kill_at)
    train_grpo(model, tokenizer, problems, config, sampling, parity_grader, run, 3, "float32")
    torch.save({"weights": common.flat(model), "points": run.points}, out)


def check_resume(checks: common.Checks, device: torch.device, toy: bool) -> None:
    """Two straight runs, and one killed with SIGKILL and resumed: each a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        codes = {}
        plan: list[tuple[str, str | None, int | None]] = [
            ("straight", None, None), ("again", None, None), ("killed", "ckpt", 4), ("resumed", "ckpt", None),
        ]  # fmt: skip
        for label, folder, kill_at in plan:
            codes[label] = _child(toy, device, root / f"{label}.pt", None if folder is None else root / folder, kill_at)
        why = "SIGKILL: the process never got to clean up"
        checks.add("killed run: exit code + 9", abs(codes["killed"] + signal.SIGKILL), 0, why)
        loaded = {
            label: torch.load(root / f"{label}.pt", weights_only=True) for label in ("straight", "again", "resumed")
        }
        noise = common.relative_error(loaded["again"]["weights"], loaded["straight"]["weights"])
        checks.note("two straight runs: relative weight difference", noise, "run-to-run noise of the device's kernels")
        error = common.relative_error(loaded["resumed"]["weights"], loaded["straight"]["weights"])
        bound = 0.0 if device.type == "cpu" else max(1e-6, 10 * noise)
        why = "bit-equal on a CPU; on a GPU within ten times the noise of two straight runs"
        checks.add("resumed vs straight: relative weight difference", error, bound, why)
        _compare_points(checks, loaded["straight"]["points"], loaded["resumed"]["points"], device)


def _child(toy: bool, device: torch.device, out: Path, folder: Path | None, kill_at: int | None) -> int:
    command = [sys.executable, "-m", "benchmarks.gpu.resume", "--out", str(out)]
    command += ["--device", device.type] + ["--toy"] * toy
    command += ["--checkpoints", str(folder)] if folder is not None else []
    command += ["--kill-at", str(kill_at)] if kill_at is not None else []
    return subprocess.run(command, check=False).returncode


def _compare_points(
    checks: common.Checks,
    straight: Sequence[tuple[int, dict[str, float]]],
    resumed: Sequence[tuple[int, dict[str, float]]],
    device: torch.device,
) -> None:
    """The steps a resumed run does again, metric by metric, times aside."""
    known = dict(straight)
    steps = [step for step, _ in resumed]
    checks.note("resumed run did steps", steps, "killed while reporting step 4, checkpoint after step 3")
    worst, where = 0.0, "none"
    for step, metrics in resumed:
        for name in metrics.keys() - {key for key in metrics if key.startswith(("time/", "memory/"))}:
            # What is smaller than that, such as the mean advantage, is rounding itself.
            difference = abs(metrics[name] - known[step][name]) / max(abs(known[step][name]), 1e-3)
            if difference > worst:
                worst, where = difference, f"{name} at step {step}"
    bound = 0.0 if device.type == "cpu" else 0.05
    why = "equal on a CPU; on a GPU a token may flip where two probabilities meet, and the rest follows"
    checks.add("resumed vs straight: worst metric difference", worst, bound, why, where=where)


def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default=None)
    parser.add_argument("--checkpoints", type=Path, default=None)
    parser.add_argument("--kill-at", type=int, default=None)
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    short_grpo(arguments.checkpoints, arguments.out, common.device_from(arguments), arguments.toy, arguments.kill_at)


if __name__ == "__main__":
    main()
