"""`alignflow worker`: the workers of one host, kept alive and ended together, with all that they started."""

import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from flows.host_setup import require_one_heartbeat
from flows.host_workers import WorkerPlan
from flows.worker_process import MARK, children_of, end_processes, left_by
from tasks.pools import GPU_POOLS

WORKER_SECONDS = 30.0
"""Longest wait for a worker without flow runs to end."""
RESTART_SECONDS = 2.0
SLOWEST_RESTART = 60.0
"""A worker that dies is started again after `RESTART_SECONDS`, twice as long after each further death in a row."""
HEALTHY_SECONDS = 120.0
"""A worker that lived so long has recovered: the next death counts as its first."""


class KeptWorker:
    """One worker: started, started again when it dies, ended."""

    def __init__(self, plan: WorkerPlan, root: Path, say: Callable[[str], None]) -> None:
        self.plan, self._root, self._say = plan, root, say
        self._mark = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0
        self._deaths = 0
        self._due = 0.0

    def look_after(self) -> None:
        """Start it if it is due."""
        now = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            self._deaths = 1 if now - self._began > HEALTHY_SECONDS else self._deaths + 1
            pause = min(RESTART_SECONDS * 2 ** (self._deaths - 1), SLOWEST_RESTART)
            self._due = now + pause
            self._say(f"{self.plan.name} ended with code {self._process.returncode}: started again in {pause:.0f} s")
            self._process = None
        if self._process is None and now >= self._due and self._is_alone():
            self._start()

    def _is_alone(self) -> bool:
        """Whether nothing that a worker that died has left still holds the GPU; what does is asked to save and end.

        A study on the pool `cpu` needs no worker to go on, and goes on.
        """
        left = left_by(self._mark) if self.plan.pool in GPU_POOLS else []
        if left:
            self._say(f"{self.plan.name}: what the worker before it ran (process {left[0]}) is asked to save and end")
            end_processes(left, lambda: False)
        return not left_by(self._mark) if left else True

    def _start(self) -> None:
        # A session of its own: the terminal's Ctrl-C is not for it, we end it, and its stages save first.
        process = subprocess.Popen(
            self.plan.command(),
            env={**self.plan.environment(os.environ, self._root), MARK: self._mark},
            cwd=self._root,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._process, self._began = process, time.monotonic()
        gpus = f", CUDA_VISIBLE_DEVICES={self.plan.gpus}" if self.plan.gpus else ""
        at_once = f"{self.plan.limit} at once"
        self._say(f"{self.plan.name} serves pool {self.plan.pool} (process {process.pid}, {at_once}{gpus})")

    def end(self, in_a_hurry: Callable[[], bool]) -> None:
        """End its flow runs, then itself; what does not end is killed."""
        process = self._process
        if process is not None:
            # Stopped, it takes no further flow run while those it has are ending.
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGSTOP)
                end_processes(children_of(process.pid), in_a_hurry)
                process.send_signal(signal.SIGCONT)
                process.terminate()
            deadline = time.monotonic() + WORKER_SECONDS
            while process.poll() is None and time.monotonic() < deadline and not in_a_hurry():
                time.sleep(0.1)
            process.kill()
            process.wait()
        end_processes(left_by(self._mark), in_a_hurry)
        for left in left_by(self._mark):
            with suppress(ProcessLookupError):
                os.kill(left, signal.SIGKILL)


def serve(plans: Sequence[WorkerPlan], root: Path, say: Callable[[str], None]) -> int:
    """Serve pools from this host until SIGTERM or Ctrl-C; the exit code is 0 then. A second one waits for nothing.

    Raises ValueError if the environment sets another heartbeat than the rest of the hosts have.
    """
    require_one_heartbeat(os.environ)
    workers = [KeptWorker(plan, root, say) for plan in plans]
    signals: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        signals.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    try:
        while not signals:
            for worker in workers:
                worker.look_after()
            time.sleep(0.5)
    finally:
        say("ending: stages under way save first (a second Ctrl-C does not wait)")
        enders = [threading.Thread(target=worker.end, args=(lambda: len(signals) > 1,)) for worker in workers]
        for ender in enders:
            ender.start()
        while any(ender.is_alive() for ender in enders):
            time.sleep(0.1)  # not in join, where a second Ctrl-C would not be heard
    return 0
