"""Stages in another interpreter: a process that runs one after another, and the side that asks it.

    PYTHON -m alignment_core.stage_server STORE

reads jobs as lines of JSON from stdin and answers on stdout with lines that begin with E (an event), O (the
outcome) or F (a failure, by its kind). It stays for the next stage, so that what is slow to start (vllm's engine)
serves all stages of a study, and ends when its stdin does. An error ends it at once: the next stage gets a fresh one.
SIGTERM and Ctrl-C are as for any stage: it saves, then stops.
"""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import IO, cast

from alignment_core.events import Event, OnEvent
from alignment_core.failures import TOLD, MemberError
from alignment_core.interruption import SIGNALS, Interrupted, interruptible
from alignment_core.operation import STAGE_PYTHON, stage_environment
from alignment_core.records import Failure, Record
from alignment_core.stage import StageOutcome, StageSpec, run_stage
from alignment_core.stage_process import require_same_code
from alignment_core.store import Store
from alignment_core.store_access import open_store_folder

LINES_TOLD = 20
"""Last lines of what a server that failed wrote, for its error message."""
READER_SECONDS = 5.0
"""Longest wait for those lines; a process that the server left behind may hold their pipe open."""


class Job(Record):
    """What a server is asked."""

    spec: StageSpec
    annotations: dict[str, str]
    reason: str


class Server:
    """A process of another interpreter that runs this store's stages."""

    def __init__(self, python: str, store: Store) -> None:
        self._process = subprocess.Popen(
            [python, "-m", "alignment_core.stage_server", str(store.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=stage_environment(),
        )
        self._asked, self._answers, complaints = (
            cast(IO[str], pipe) for pipe in (self._process.stdin, self._process.stdout, self._process.stderr)
        )
        self._said: deque[str] = deque(maxlen=LINES_TOLD)
        self._reader = Thread(target=self._said.extend, args=(complaints,), daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether it can take a stage."""
        return self._process.poll() is None

    def run(self, job: Job, on_event: OnEvent | None) -> StageOutcome:
        """Run one stage. Raises what `run_elsewhere` says, and `Interrupted` if a signal ended the process instead."""
        try:
            with suppress(BrokenPipeError):  # it has ended: `_listen` says why
                print(job.model_dump_json(), file=self._asked, flush=True)
            return self._listen(on_event)
        except KeyboardInterrupt:
            self._process.terminate()  # it may have had the signal itself: two in a row are one
            with suppress(*TOLD, RuntimeError, Interrupted):
                self._listen(on_event)
            self.close()
            raise

    def close(self) -> None:
        """End the process, after the stage it is at."""
        with suppress(BrokenPipeError):
            self._asked.close()
        self._process.wait()

    def _listen(self, on_event: OnEvent | None) -> StageOutcome:
        failed: Failure | None = None
        for line in self._answers:
            if line[0] == "O":
                return StageOutcome.model_validate_json(line[1:])
            if line[0] == "F":
                failed = Failure.model_validate_json(line[1:])  # its last answer: what follows is its end
            elif on_event is not None:
                on_event(Event.model_validate_json(line[1:]))
        code = self._process.wait()
        for signum in SIGNALS:
            if code == 128 + signum:
                raise Interrupted(signum)
        if failed is not None:
            raise failed.error()
        self._reader.join(READER_SECONDS)
        last = "".join(self._said).strip()
        if code < 0:
            raise MemberError(
                f"the process of the stage ended with code {code}: it was killed, often for lack of memory, or "
                f"crashed. The same command goes on from its last checkpoint. What it said last: {last or 'nothing'}"
            )
        raise RuntimeError(last or f"the process of the stage ended with code {code}")


_servers: dict[tuple[str, str], Server] = {}


def run_elsewhere(
    python: str,
    store: Store,
    spec: StageSpec,
    on_event: OnEvent | None = None,
    annotations: Mapping[str, str] | None = None,
    reason: str = "",
) -> StageOutcome:
    """`run_stage` in the interpreter `python`; what the stage records is told here as it comes.

    Raises what the stage raises there, by its kind (`alignment_core.failures`); MemberError if the process is killed,
    RuntimeError, with what it said last, for a bug.
    """
    place = (python, str(store.root))
    if place not in _servers or not _servers[place].alive:
        _servers[place] = Server(python, store)
    with interruptible():
        return _servers[place].run(Job(spec=spec, annotations=dict(annotations or {}), reason=reason), on_event)


def close_servers() -> None:
    """End the processes that wait for a further stage."""
    while _servers:
        _servers.popitem()[1].close()


def serve(store: Store, answer: Callable[[str, Record], None]) -> None:
    """Run the stages asked for on stdin, until its end."""

    def on_event(event: Event) -> None:
        answer("E", event)

    for line in sys.stdin:
        job = Job.model_validate_json(line)
        require_same_code(job.spec, job.spec.label)
        answer("O", run_stage(store, job.spec, on_event, job.annotations, job.reason))


def main() -> int:
    """Serve; return the exit code."""
    os.environ.pop(STAGE_PYTHON, None)  # this is the interpreter it names
    # stdout is for answers alone: whatever a library prints goes to stderr from here on.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(kind: str, record: Record) -> None:
        print(f"{kind}{record.model_dump_json()}", file=answers, flush=True)

    try:
        serve(open_store_folder(Path(sys.argv[1])), answer)
    except Interrupted as error:
        return error.exit_code
    except TOLD as error:
        answer("F", Failure.of(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
