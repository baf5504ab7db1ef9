"""The manifest that makes a folder an artifact: what it records, and whether folder and manifest still agree."""

import hashlib
import json
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from alignment_core.records import ArtifactRef, Record
from alignment_core.verified import VerifiedFiles

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
    settings: dict[str, Any] = Field(default_factory=dict)
    """Every setting of the stage, those outside the key included; empty in artifacts of older versions."""

    def ref(self) -> ArtifactRef:
        """The reference other stages and hosts use."""
        return ArtifactRef(stage=self.stage, key=self.key, digest=self.digest)


class ManifestDraft(Record):
    """A manifest before its files are known."""

    stage: str
    key: str
    label: str
    components: Components
    parents: dict[str, ArtifactRef]
    producer: Producer
    settings: dict[str, Any] = Field(default_factory=dict)


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_file(path: Path) -> FileEntry:
    """Size, digest and modification time of a file."""
    stat = path.stat()
    return FileEntry(size=stat.st_size, sha256=file_sha256(path), mtime_ns=stat.st_mtime_ns)


def content_digest(files: dict[str, FileEntry]) -> str:
    """sha256 over the names and digests of the content files (the record is left out)."""
    content = {name: entry.sha256 for name, entry in files.items() if not name.startswith(f"{RECORD}/")}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def manifest_flaw(manifest: Manifest, stage: str, key: str) -> str:
    """What is wrong with a manifest as a whole, in words; empty if nothing."""
    if (manifest.stage, manifest.key) != (stage, key):
        return f"it is of {manifest.stage}/{manifest.key}"
    for name in manifest.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            return f"it lists {name!r}, which lies outside the artifact"
        if name != path.as_posix() or name in {".", MANIFEST} or "\0" in name:
            return f"it lists {name!r}, which is no name of a file of an artifact"
    for ref in manifest.parents.values():
        if not (_is_plain_name(ref.stage) and _is_plain_name(ref.key)):
            return f"its parent {ref.stage}/{ref.key} lies outside the store"
    if content_digest(manifest.files) != manifest.digest:
        return "its digest is not that of the files it lists"
    return ""


def _is_plain_name(name: str) -> bool:
    """Whether a name is that of one folder in the store, and leads nowhere else."""
    return name not in {"", ".", ".."} and not set(name) & set("/\\\0")


def is_linked(folder: Path, name: str) -> bool:
    """Whether a file of an artifact, or a folder on the way to it within the artifact, is a symbolic link."""
    path = PurePosixPath(name)
    return any((folder / part).is_symlink() for part in (path, *path.parents[:-1]))


def find_damage(folder: Path, files: dict[str, FileEntry], verified: VerifiedFiles) -> str:
    """What is wrong with the files of an artifact, in words; empty if nothing.

    Files are plain ones: a link may lead outside the artifact. Sizes are compared always, contents where the
    modification time is neither that of the publication nor one at which the file was found equal before.
    """
    for name, entry in files.items():
        path = folder / name
        try:
            stat = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return f"its file {name} is missing"
        if not S_ISREG(stat.st_mode) or is_linked(folder, name):
            return f"its file {name} is no plain file, or lies behind a symbolic link"
        if stat.st_size != entry.size:
            return f"its file {name} has {stat.st_size} bytes, not {entry.size}"
        if stat.st_mtime_ns != entry.mtime_ns and not verified.knows(name, entry.sha256, stat):
            if file_sha256(path) != entry.sha256:
                return f"its file {name} was edited"
            verified.add(name, entry.sha256, stat)
    verified.save()
    return ""
