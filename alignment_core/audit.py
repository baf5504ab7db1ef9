"""Full verification of a store: every byte against the manifests."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from pydantic import ValidationError

from alignment_core.journal import PastRun, past_runs
from alignment_core.manifest import MANIFEST, RECORD, Manifest, file_sha256, is_linked, manifest_flaw
from alignment_core.records import Record
from alignment_core.store import Store


class Finding(Record):
    """One thing that is wrong."""

    stage: str
    key: str
    label: str
    file: str
    """Path within the artifact; empty if it is the folder itself."""
    problem: str
    remedy: str


def verify(store: Store, prefixes: Sequence[str] = ()) -> Iterator[tuple[str, list[Finding]]]:
    """(`stage/key`, findings) of every artifact folder, or of those whose key or `stage/key` starts with a prefix.

    Reads every byte. Raises ValueError for a prefix that matches nothing.
    """
    folders = sorted(path for path in store.root.glob("[!.]*/*") if path.is_dir() and ".tmp-" not in path.name)
    for prefix in prefixes:
        if not any(_matches(folder, prefix) for folder in folders):
            raise ValueError(f"no artifact with key {prefix!r}: 'alignflow artifacts ls' shows the keys")
    commands = _commands(past_runs(store.root))
    for folder in folders:
        if not prefixes or any(_matches(folder, prefix) for prefix in prefixes):
            again = commands.get(folder.name) or "the command that made it"
            yield f"{folder.parent.name}/{folder.name}", list(_findings(folder, again))


def _matches(folder: Path, prefix: str) -> bool:
    return folder.name.startswith(prefix) or f"{folder.parent.name}/{folder.name}".startswith(prefix)


def _commands(runs: Sequence[PastRun]) -> dict[str, str]:
    """Key -> the latest command that reached it."""
    return {line.key: run.command() for run in runs if run.command() for line in run.reached}


def _findings(folder: Path, again: str) -> Iterator[Finding]:
    label = ""

    def finding(
        file: str, problem: str, remedy: str = f"run `{again}` again: it computes the artifact anew"
    ) -> Finding:
        return Finding(
            stage=folder.parent.name, key=folder.name, label=label, file=file, problem=problem, remedy=remedy
        )

    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        yield finding(MANIFEST, "missing: the folder counts as absent")
        return
    except ValidationError:
        yield finding(MANIFEST, "unreadable")
        return
    label = manifest.label
    if flaw := manifest_flaw(manifest, folder.parent.name, folder.name):
        yield finding(MANIFEST, f"edited: {flaw}")
        return
    for name, entry in manifest.files.items():
        linked = is_linked(folder, name)
        problem = "a symbolic link" if linked else _compare(folder / name, entry.size, entry.sha256)
        if problem:
            yield finding(name, problem)
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(present - manifest.files.keys() - {MANIFEST}):
        if not name.startswith(f"{RECORD}/"):
            yield finding(name, "not in the manifest", "remove the file")


def _compare(path: Path, size: int, sha256: str) -> str:
    """What is wrong with a file, in words; empty if nothing."""
    try:
        found = path.stat()
        if not S_ISREG(found.st_mode):
            return "no plain file"
        if found.st_size != size:
            return f"{found.st_size} bytes, not {size}"
        if file_sha256(path) == sha256:
            return ""
        with suppress(OSError):
            os.utime(path)  # a lookup compares contents only where the time changed: now it will, and compute anew
        return "content differs (sha256)"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
