"""The journal of a store: a file per study run, saying what was asked and which artifacts it reached.

    STORE/.journal/<time>-<run>.jsonl     `began`, a line per artifact reached, `ended`, `shown`; `….open.jsonl` until
                                          its end is shown
    STORE/.locks/store.lock               shared by every study run, exclusive to whoever removes artifacts

A run holds an flock on its own file for as long as its process lives, so that an open file that can be locked is of
a run that was killed.
"""

import fcntl
import json
import os
import re
import shlex
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from alignment_core.locks import open_store_lock, try_lock
from alignment_core.records import Record
from alignment_core.redaction import redact_all

FOLDER = ".journal"
OPEN = ".open.jsonl"
COMMANDS = {"study": "run", "evaluation": "eval", "expert-iteration": "ei"}
"""Flow -> command, where their names differ."""
_WORDS = re.compile(r"(?:[A-Za-z]|\.{0,2}/)[\w./@+-]*(?: [\w./@+-]+)*", re.ASCII)
_NO_TEXT = {"true", "false", "yes", "no", "on", "off", "null", "nan", "inf", "infinity"}
"""Words that YAML, or who types a number, reads as something else."""


class Began(Record):
    """First line: what was asked, and by whom."""

    kind: Literal["began"] = "began"
    run: str
    """Id of the study run, unique in the store."""
    study: str
    name: str
    """For people, e.g. `study tiny seed0`."""
    request: dict[str, Any] = Field(default_factory=dict)
    """Flow, preset (a file by its whole path), overrides and model: what to ask for again."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Every setting of the study; empty in journals of older versions."""
    tags: dict[str, str] = Field(default_factory=dict)
    flow_run: str = ""
    """Id of the orchestrator's flow run, if there is one."""
    time: float
    """Unix time, seconds."""
    host: str
    pid: int
    boot: str
    """Identity of the host's boot: a process id means something only within one."""


class Reached(Record):
    """A stage the run came to (`asked`: before anything is looked up), and how its artifact was had in the end."""

    kind: Literal["reached"] = "reached"
    label: str
    stage: str
    key: str
    how: Literal["asked", "cached", "ran", "resumed"]


class Ended(Record):
    """Last line."""

    kind: Literal["ended"] = "ended"
    status: Literal["FINISHED", "FAILED", "KILLED"]
    time: float
    metrics: dict[str, float] = Field(default_factory=dict)
    files: list[str] = Field(default_factory=list)
    """Results shown with the run, as paths within the store."""


class Shown(Record):
    """Beyond the last: the tracker shows all that the run reached."""

    kind: Literal["shown"] = "shown"


_LINE: TypeAdapter[Began | Reached | Ended | Shown] = TypeAdapter(Began | Reached | Ended | Shown)


class PastRun:
    """One file of the journal, read."""

    def __init__(self, path: Path, began: Began, reached: list[Reached], ended: Ended | None, shown: bool) -> None:
        self.path, self.began, self.reached, self.ended, self.shown = path, began, reached, ended, shown

    def is_alive(self) -> bool:
        """Whether its process still holds the file."""
        try:
            with self.path.open("rb") as file:
                return not try_lock(file, fcntl.LOCK_SH)
        except FileNotFoundError:
            return True  # it has ended, and renamed the file, since it was read

    def is_dead(self) -> bool:
        """Whether its process is gone, as far as this host can tell: a lock of another host may not be seen here."""
        return self.began.host == socket.gethostname() and not self.is_alive()

    def note_closed(self) -> None:
        """Close the file of a dead run; does nothing if another process just did."""
        with suppress(FileNotFoundError), self.path.open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if self.ended is None:
                ended = Ended(status="KILLED", time=self.path.stat().st_mtime)
                file.seek(0, os.SEEK_END)
                file.write("\n" + ended.model_dump_json() + "\n")  # the last line may have been cut off
                file.flush()
            _close(self.path)

    def command(self) -> str:
        """What to type to ask for the same again, in the folder it was asked in; empty if it is not known."""
        request = self.began.request
        return command_line(request["flow"], str(request["preset"]), request) if "preset" in request else ""


def command_line(flow: str, preset: str, request: Mapping[str, Any]) -> str:
    """The command that runs a flow on a preset with a request's overrides and model, quoted for a shell."""
    words = ["alignflow", COMMANDS.get(flow, flow), preset]
    for name, value in (request.get("overrides") or {}).items():
        words += ["--set", f"{name}={_as_yaml(value)}"]
    if request.get("artifact"):
        words += ["--model", str(request["artifact"])]
    return shlex.join(words)


def _as_yaml(value: Any) -> str:
    """A value as `--set` reads it back: plain words as they are, all else as JSON, which is YAML."""
    plain = isinstance(value, str) and _WORDS.fullmatch(value) and value.lower() not in _NO_TEXT
    return value if plain else json.dumps(value, ensure_ascii=False)


class RunJournal:
    """The journal file of a run under way."""

    def __init__(self, path: Path, began: Began, file: IO[str], store_lock: IO[str]) -> None:
        self.path, self.began = path, began
        self._file, self._store_lock = file, store_lock
        self._writing = threading.Lock()
        self.ended = False

    def reached(self, label: str, stage: str, key: str, how: Literal["asked", "cached", "ran", "resumed"]) -> None:
        """Note an artifact this run stands on."""
        self._write(Reached(label=label, stage=stage, key=key, how=how))

    def end(
        self,
        status: Literal["FINISHED", "FAILED", "KILLED"],
        metrics: dict[str, float] | None = None,
        files: Sequence[str] = (),
    ) -> None:
        """Last line."""
        self.ended = True
        self._write(Ended(status=status, time=time.time(), metrics=metrics or {}, files=list(files)))

    def release(self, shown: bool) -> None:
        """The run no longer counts as alive. If its end is not `shown` by the tracker, the next start sees to that."""
        if shown:
            self._write(Shown())
            _close(self.path)
        self._file.close()
        self._store_lock.close()

    def _write(self, line: Record) -> None:
        with self._writing:
            self._file.write(line.model_dump_json() + "\n")
            self._file.flush()


def begin_run(
    store: Path,
    study: str,
    name: str,
    request: dict[str, Any] | None = None,
    tags: dict[str, str] | None = None,
    flow_run: str = "",
    settings: dict[str, Any] | None = None,
) -> RunJournal:
    """Open the journal of a new study run; waits while artifacts are being removed."""
    began = Began(
        run=uuid.uuid4().hex,
        study=study,
        name=name,
        request=redact_all(request or {}),
        settings=redact_all(settings or {}),
        tags=tags or {},
        flow_run=flow_run,
        time=time.time(),
        host=socket.gethostname(),
        pid=os.getpid(),
        boot=boot_identity(),
    )
    store_lock = open_store_lock(store)
    fcntl.flock(store_lock, fcntl.LOCK_SH)
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(began.time))
    path = store / FOLDER / f"{stamp}-{began.run[:12]}{OPEN}"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("x", encoding="utf-8")
    fcntl.flock(file, fcntl.LOCK_EX)
    journal = RunJournal(path, began, file, store_lock)
    journal._write(began)
    return journal


def dead_runs(store: Path) -> list[PastRun]:
    """Study runs of this host whose process died before their end was shown; reads no other file than theirs."""
    found = (_read(path) for path in (store / FOLDER).glob(f"*{OPEN}"))
    return [run for run in found if run is not None and run.is_dead()]


def past_runs(store: Path) -> list[PastRun]:
    """Every study run of the store, oldest first; a file whose first line is not whole is none."""
    found = (_read(path) for path in (store / FOLDER).glob("*.jsonl"))
    return sorted((run for run in found if run is not None), key=lambda run: run.began.time)


def keys_shown(store: Path, study: str) -> set[str]:
    """Keys of the artifacts that the tracker shows under a study, because earlier runs of it stand on them."""
    runs = (run for run in past_runs(store) if run.shown and run.began.study == study)
    return {line.key for run in runs for line in run.reached if line.how != "asked"}


def keys_in_use(store: Path) -> set[str]:
    """Keys of the artifacts that study runs under way stand on; reads no other file than theirs."""
    found = (_read(path) for path in (store / FOLDER).glob(f"*{OPEN}"))
    return {line.key for run in found if run is not None and run.is_alive() for line in run.reached}


@contextmanager
def undisturbed(store: Path, patience: float = 0.0) -> Iterator[None]:
    """No study run is under way on this store within the block.

    Raises ValueError that names those that are, once `patience` seconds have passed.
    """
    deadline = time.monotonic() + patience
    with open_store_lock(store) as lock:
        while not try_lock(lock, fcntl.LOCK_EX):
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            alive = [
                f"{run.began.name} (pid {run.began.pid} on {run.began.host})"
                for run in past_runs(store)
                if run.ended is None and run.is_alive()
            ]
            raise ValueError(
                f"{', '.join(alive) or 'another command'} works on {store} now: wait until it has ended, or stop it, "
                "then run this command again"
            )
        yield


def boot_identity() -> str:
    """Linux' id of the current boot; empty elsewhere."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.is_file() else ""


def _read(path: Path) -> PastRun | None:
    began: Began | None = None
    reached: list[Reached] = []
    ended: Ended | None = None
    shown = False
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None  # renamed since the folder was listed
    for text in lines:
        try:
            line = _LINE.validate_json(text)
        except ValidationError:
            continue  # cut off by a kill, or empty
        if isinstance(line, Began):
            began = line
        elif isinstance(line, Ended):
            ended = line
        elif isinstance(line, Shown):
            shown = True
        else:
            reached.append(line)
    return PastRun(path, began, reached, ended, shown) if began is not None else None


def _close(path: Path) -> None:
    path.rename(path.with_name(path.name.removesuffix(OPEN) + ".jsonl"))
