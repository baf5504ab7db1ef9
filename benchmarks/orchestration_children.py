"""What `benchmarks.orchestration` runs in processes of its own: `python -m … FUNCTION ARGUMENTS`, JSON out."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

KINDS = (
    *("prepare", "pretrain", "import_model", "sample", "grade", "filter"),
    *("sft", "select", "grpo", "analyze", "report"),
)
GIGABYTE = 10**9


def keys() -> dict[str, dict[str, float]]:
    """Milliseconds of processor time of each kind's first key in this process, and of its next."""
    from alignment_core.config import Config
    from alignment_core.records import ArtifactRef
    from alignment_core.stage import make_spec

    inputs = {name: ArtifactRef(stage="sft", key=name * 32, digest=name * 64) for name in "ab"}
    times: dict[str, dict[str, float]] = {"first": {}, "again": {}}
    for kind in KINDS * 2:
        began = time.process_time()
        make_spec(kind, Config(), inputs, kind)
        round_ = "again" if kind in times["first"] else "first"
        times[round_][kind] = 1000 * (time.process_time() - began)
    return times


def checkpoint(folder: str) -> dict[str, float]:
    """Share of the plain write's speed that a checkpoint, written and read back twice, reaches; the two take turns."""
    import torch
    from torch import nn

    from alignment_core.checkpoint_folders import find_flaw
    from alignment_core.checkpoints import LoopIdentity, write_checkpoint
    from alignment_core.stage_run import StageRun

    place = Path(folder)
    model = nn.ModuleList(nn.Linear(2048, 2048, bias=False) for _ in range(20))  # 336 MB; its moments twice that
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    identity = LoopIdentity(loop="benchmark", seed=0, total=100, items=1)
    run = StageRun(place / "work")
    run.resume()
    tensors = [weight.detach() for weight in model.parameters()]
    tensors += [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    saved, plain = [], []
    for step in (1, 2, 3):
        plain.append(_plain_write(place / "plain.bin", tensors))
        began = time.perf_counter()
        write = partial(write_checkpoint, model=model, optimizer=optimizer, step=step, identity=identity)
        run.save_checkpoint(step, write)
        checkpoint = run.latest_checkpoint()
        if checkpoint is None or find_flaw(checkpoint):
            raise RuntimeError("the checkpoint is not found, or not what was written")
        saved.append(time.perf_counter() - began)
    run.close()
    size = sum(tensor.nbytes for tensor in tensors) / GIGABYTE
    shutil.rmtree(place)
    return {
        "checkpoint_share": min(plain) / min(saved),
        "checkpoint GB/s": size / min(saved),
        "plain write + fsync GB/s": size / min(plain),
    }


def _plain_write(path: Path, tensors: list[Any]) -> float:
    path.unlink(missing_ok=True)
    began = time.perf_counter()
    with path.open("wb") as file:
        for tensor in tensors:
            file.write(tensor.numpy().data)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


def small_stage(index: int) -> Any:
    """Settings of a `prepare` stage that takes a few milliseconds."""
    from alignment_core.config import ArithmeticConfig, DataConfig
    from alignment_core.stage_config import PrepareStage

    data = DataConfig(arithmetic=ArithmeticConfig(train=16, dev=4, test=4))
    return PrepareStage(data=data, template="{question}", seed=index)


def direct(folder: str, count: str) -> dict[str, float]:
    """The stages' own work and nothing else."""
    from alignment_core.runs import MemoryRun
    from alignment_core.stages.prepare import run

    began = time.perf_counter()
    for index in range(int(count)):
        output = Path(folder) / str(index)
        output.mkdir(parents=True)
        run(small_stage(index), {}, output, MemoryRun())
    return {"seconds": time.perf_counter() - began}


def study(root: str, count: str) -> dict[str, Any]:
    """A flow of so many stages under `root`: seconds from its call to its end, MLflow's included."""
    from flows.cli import QUIET

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from prefect import flow

    from tasks.stages import run_cached
    from tasks.workspace import open_workspace

    @flow(name="orchestration")
    def many() -> list[str]:
        with open_workspace(root, "orchestration", "benchmark") as workspace:
            for index in range(int(count)):
                run_cached(workspace, "prepare", small_stage(index), {}, f"prepare/{index}")
            return sorted({outcome.how for outcome in workspace.outcomes.values()})

    began = time.perf_counter()
    how = many()
    return {"seconds": time.perf_counter() - began, "how": how}


FUNCTIONS: dict[str, Callable[..., Any]] = {"keys": keys, "checkpoint": checkpoint, "direct": direct, "study": study}

if __name__ == "__main__":
    print(json.dumps(FUNCTIONS[sys.argv[1]](*sys.argv[2:])))
