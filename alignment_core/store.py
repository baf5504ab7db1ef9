"""The content-addressed artifact store: a folder per finished stage, its manifest written last.

    STORE/<stage>/<key>/…            content files, then manifest.json
    STORE/<stage>/<key>/record/…     events and logs: kept beside the content, outside its digest
    STORE/.work/<stage>-<key>/       a stage under way (alignment_core.stage)
    STORE/.ledger.jsonl              one line per publication, so that a deletion can be told from a first run

A folder with a valid manifest is complete; anything else is not there.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alignment_core.records import ArtifactRef, Record

MANIFEST = "manifest.json"
RECORD = "record"


class FileEntry(Record):
    """One file of an artifact."""

    size: int
    sha256: str
    mtime_ns: int


class Components(Record):
    """What a key is made of; two keys differ exactly where these differ."""

    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]
    """Input name -> digest of the artifact."""
    code: dict[str, str]
    """Definition -> digest of its normalised syntax tree."""
    versions: dict[str, str]

    def key(self) -> str:
        """sha256 over canonical JSON, 32 hex digits."""
        return hashlib.sha256(canonical_json(self.model_dump()).encode()).hexdigest()[:32]


class Producer(Record):
    """How an artifact came to be; nothing here enters a key."""

    started: float
    """Unix time, seconds."""
    seconds: float
    host: str
    resumed_from_step: int | None = None
    annotations: dict[str, str] = Field(default_factory=dict)
    """Free text from the caller, e.g. the id of the tracking run."""


class Manifest(BaseModel):
    """The record that makes a folder an artifact."""

    model_config = ConfigDict(frozen=True)

    stage: str
    key: str
    label: str
    digest: str
    files: dict[str, FileEntry]
    components: Components
    parents: dict[str, ArtifactRef]
    producer: Producer

    def ref(self) -> ArtifactRef:
        """The reference other stages and hosts use."""
        return ArtifactRef(stage=self.stage, key=self.key, digest=self.digest)


class Lookup(Record):
    """What the store says about a key."""

    status: Literal["hit", "missing", "damaged", "deleted"]
    ref: ArtifactRef | None = None
    reason: str = ""


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Store:
    """Artifacts under one root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, ref: ArtifactRef) -> Path:
        """Folder of an artifact."""
        return self.root / ref.stage / ref.key

    def lookup(self, stage: str, key: str) -> Lookup:
        """Whether the artifact is there and whole; says what is wrong if it is not."""
        folder = self.root / stage / key
        try:
            manifest = self.manifest(stage, key)
        except FileNotFoundError:
            if any(line["key"] == key for line in self.ledger()):
                return Lookup(status="deleted", reason="its artifact was deleted")
            return Lookup(status="missing")
        except (ValidationError, ValueError):
            return Lookup(status="damaged", reason=f"its manifest {folder / MANIFEST} is unreadable")
        problem = find_damage(folder, manifest.files)
        if problem:
            return Lookup(status="damaged", reason=problem)
        return Lookup(status="hit", ref=manifest.ref())

    def manifest(self, stage: str, key: str) -> Manifest:
        """The manifest; FileNotFoundError if there is no such artifact."""
        return Manifest.model_validate_json((self.root / stage / key / MANIFEST).read_bytes())

    def manifests(self) -> Iterator[Manifest]:
        """All artifacts, oldest first; a folder whose manifest cannot be read is none."""
        found = []
        for path in self.root.glob(f"[!.]*/*/{MANIFEST}"):
            if ".tmp-" not in path.parent.name:
                with suppress(FileNotFoundError, ValidationError):
                    found.append(Manifest.model_validate_json(path.read_bytes()))
        return iter(sorted(found, key=lambda manifest: manifest.producer.started))

    def find(self, prefix: str) -> Manifest:
        """The one artifact whose key, or `stage/key`, starts with `prefix`; ValueError if none or several."""
        matches = [m for m in self.manifests() if m.key.startswith(prefix) or f"{m.stage}/{m.key}".startswith(prefix)]
        if len(matches) != 1:
            what = "no artifact" if not matches else f"{len(matches)} artifacts"
            raise ValueError(f"{what} with key {prefix!r}: 'alignflow artifacts ls' shows the keys")
        return matches[0]

    def publish(self, source: Path, draft: "ManifestDraft") -> ArtifactRef:
        """Make the files under `source` the artifact `draft` describes: manifest last, then one rename."""
        target = self.root / draft.stage / draft.key
        staging = target.with_name(f"{draft.key}.tmp-{uuid.uuid4().hex[:8]}")
        staging.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, staging)
        for path in staging.rglob("*"):
            if path.is_file():
                sync_file(path)
        files = {
            path.relative_to(staging).as_posix(): describe_file(path)
            for path in sorted(staging.rglob("*"))
            if path.is_file()
        }
        manifest = Manifest(**draft.model_dump(), files=files, digest=content_digest(files))
        write_durably(staging / MANIFEST, manifest.model_dump_json(indent=1))
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
        sync_folder(target.parent)
        self._note_publication(manifest)
        return manifest.ref()

    def ledger(self) -> list[dict[str, Any]]:
        """Every publication ever made here: stage, key, label, time; oldest first."""
        path = self.root / ".ledger.jsonl"
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]

    def _note_publication(self, manifest: Manifest) -> None:
        line = {"stage": manifest.stage, "key": manifest.key, "label": manifest.label, "time": time.time()}
        with (self.root / ".ledger.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class ManifestDraft(Record):
    """A manifest before its files are known."""

    stage: str
    key: str
    label: str
    components: Components
    parents: dict[str, ArtifactRef]
    producer: Producer


def describe_file(path: Path) -> FileEntry:
    """Size, digest and modification time of a file."""
    stat = path.stat()
    return FileEntry(size=stat.st_size, sha256=file_sha256(path), mtime_ns=stat.st_mtime_ns)


def content_digest(files: dict[str, FileEntry]) -> str:
    """sha256 over the names and digests of the content files (the record is left out)."""
    content = {name: entry.sha256 for name, entry in files.items() if not name.startswith(f"{RECORD}/")}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def find_damage(folder: Path, files: dict[str, FileEntry]) -> str:
    """What is wrong with the files of an artifact, in words; empty if nothing.

    Sizes are compared always, contents only where the modification time changed since publication.
    """
    for name, entry in files.items():
        path = folder / name
        try:
            stat = path.stat()
        except FileNotFoundError:
            return f"its file {name} is missing"
        if stat.st_size != entry.size:
            return f"its file {name} has {stat.st_size} bytes, not {entry.size}"
        if stat.st_mtime_ns != entry.mtime_ns and file_sha256(path) != entry.sha256:
            return f"its file {name} was edited"
    return ""


def write_durably(path: Path, text: str) -> None:
    """Write a file that is whole or not there: temporary name, fsync, rename."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explain_miss(store: Store, components: Components, label: str) -> str:
    """Why this key is new: what differs from the latest artifact of the same stage and label."""
    for line in reversed(store.ledger()):
        if line["stage"] != components.stage or line["label"] != label:
            continue
        try:
            previous = store.manifest(line["stage"], line["key"]).components
        except (FileNotFoundError, ValidationError):
            continue
        return "; ".join(differences(previous, components)) or "nothing it depends on changed"
    return "first run"


def differences(old: Components, new: Components) -> list[str]:
    """Readable list of what changed between two sets of components, at most four of each kind."""
    lines = []
    for kind in ("config", "inputs", "code", "versions"):
        before, after = _flatten(getattr(old, kind)), _flatten(getattr(new, kind))
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        shown = [
            f"{name} {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
            if kind in {"config", "versions"}
            else name
            for name in changed[:4]
        ]
        if changed:
            more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
            lines.append(f"{kind} changed: {', '.join(shown)}{more}")
    return lines


def _flatten(value: object, prefix: str = "") -> dict[str, object]:
    """Leaves of a nested dict by dotted name."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, object] = {}
    for name, item in value.items():
        flat.update(_flatten(item, f"{prefix}.{name}" if prefix else name))
    return flat
