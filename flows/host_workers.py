"""Which workers a host has: one per GPU, one for several GPUs together, one for what needs none."""

import os
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.checkout import CHECKOUT
from tasks.pools import CPU_POOL, GPU_POOL, HEARTBEAT, HEARTBEAT_SECONDS, MULTI_POOL
from tasks.roots import ROOT


@dataclass(frozen=True)
class WorkerPlan:
    """One worker of this host."""

    name: str
    pool: str
    limit: int
    gpus: str | None
    """CUDA_VISIBLE_DEVICES; None leaves it."""

    def command(self) -> list[str]:
        """What runs it."""
        options = ["--pool", self.pool, "--name", self.name, "--limit", str(self.limit), "--type", "process"]
        return [sys.executable, "-m", "flows.worker_process", *options, "--no-create-pool-if-not-found"]

    def environment(self, base: Mapping[str, str], root: Path) -> dict[str, str]:
        """The worker's environment, which the flow runs it starts inherit."""
        paths = [str(CHECKOUT), *filter(None, [base.get("PYTHONPATH")])]
        quiet = {"PREFECT_LOGGING_LEVEL", "PREFECT_INTERNAL_LOGGING_LEVEL", "MLFLOW_LOGGING_LEVEL"}
        kept = {name: value for name, value in base.items() if name not in quiet or value != "CRITICAL"}
        own = {
            ROOT: str(root),
            HEARTBEAT: str(HEARTBEAT_SECONDS),
            "PREFECT_LOGGING_EXTRA_LOGGERS": "alignflow",
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
        }
        visible = {} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": self.gpus}
        return {"PREFECT_WORKER_QUERY_SECONDS": "5", **kept, **own, **visible}


def plan_workers(gpu: str | None, multi: str | None, cpu: int, host: str = "") -> list[WorkerPlan]:
    """The workers that `--gpu 0,1 --multi 2,3 --cpu 4` asks for.

    Raises ValueError, with the remedy, if nothing is asked for, or a GPU twice.
    """
    host = host or socket.gethostname().split(".")[0]
    single, together = _indices("--gpu", gpu), _indices("--multi", multi)
    if both := [index for index in single if index in together]:
        raise ValueError(f"GPU {both[0]} is in --gpu and in --multi: a GPU belongs to one worker")
    workers = [WorkerPlan(f"{host}-gpu{index}", GPU_POOL, 1, index) for index in single]
    if together:
        workers.append(WorkerPlan(f"{host}-gpus{'-'.join(together)}", MULTI_POOL, 1, ",".join(together)))
    if cpu:
        # The process of a study needs no GPU, and must not hold memory of one by accident.
        workers.append(WorkerPlan(f"{host}-cpu", CPU_POOL, cpu, ""))
    if not workers:
        raise ValueError("nothing to serve: give --gpu 0,1 (a worker each), --multi 0,1 (one for both), or --cpu N")
    return workers


def _indices(option: str, text: str | None) -> list[str]:
    found = [part.strip() for part in (text or "").split(",") if part.strip()]
    if any(not re.fullmatch(r"\d+", part) for part in found) or len(set(found)) < len(found):
        raise ValueError(f"{option} {text}: give the indices of GPUs, each once, e.g. {option} 0,1")
    return found
