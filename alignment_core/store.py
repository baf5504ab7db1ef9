"""The content-addressed artifact store: a folder per finished stage, its manifest written last.

    STORE/<stage>/<key>/…            content files, then manifest.json
    STORE/<stage>/<key>/record/…     events and logs: kept beside the content, outside its digest
    STORE/.work/<stage>-<key>/       a stage under way (alignment_core.stage)
    STORE/.ledger.jsonl              one line per publication, so that a deletion can be told from a first run
    STORE/.shared/, STORE/.incoming/ what is known of, and comes from, a shared store (alignment_core.shared_store)
    STORE/.accepted/<stage>/<key>.json   an older artifact that answers for this key (alignment_core.acceptance)

A folder with a valid manifest is complete; anything else is not there.
"""

import glob
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from alignment_core.durable import sync_file, sync_folder, write_durably
from alignment_core.ledger import note_publication, read_ledger
from alignment_core.manifest import (
    MANIFEST,
    Components,
    Manifest,
    ManifestDraft,
    content_digest,
    describe_file,
    find_damage,
    manifest_flaw,
)
from alignment_core.records import ArtifactRef, Record
from alignment_core.sharing import Shared
from alignment_core.verified import VerifiedFiles


class Acceptance(Record):
    """A person's word that an artifact stands although its code changed: it answers for the key of the new code."""

    kept: ArtifactRef
    components: Components
    """Today's, whose key the artifact answers for."""
    reason: str
    changed: list[str]
    """What differs from the components the artifact was computed from, in words."""
    time: float
    """Unix time, seconds."""

    def summary(self) -> str:
        """One line for tables and logs."""
        return f"accepted from {self.kept.key[:12]}: {self.reason}"


class Lookup(Record):
    """What the store says about a key."""

    status: Literal["hit", "missing", "damaged", "deleted"]
    ref: ArtifactRef | None = None
    reason: str = ""
    accepted: str = ""
    """Why an artifact of older code answers, if one does; `ref` has the key it was computed under."""


class Store:
    """Artifacts under one root folder."""

    def __init__(self, root: Path, remembers: bool = True, shared: Shared = None) -> None:
        """`remembers`: whether a lookup may note which touched files it found equal; else nothing is written.

        shared: the store that this one is the cache of (`alignment_core.store_access.open_store`).
        """
        self.root = root
        self.remembers = remembers
        self.shared = shared

    def folder(self, ref: ArtifactRef) -> Path:
        """Where an artifact lies in this root, if it is here."""
        return self.root / ref.stage / ref.key

    def path(self, ref: ArtifactRef) -> Path:
        """Folder of an artifact; one that only the shared store has is downloaded and verified first."""
        return self.folder(ref) if self.shared is None else self.shared.bring(ref)

    def record(self, ref: ArtifactRef) -> Path:
        """A folder with an artifact's record and its small files: what trackers read, without downloading weights."""
        return self.folder(ref) if self.shared is None else self.shared.bring_record(ref)

    def lookup(self, stage: str, key: str) -> Lookup:
        """Whether the artifact is there and whole, here or in the shared store; says what is wrong if it is not."""
        here = self._lookup_here(stage, key)
        return here if self.shared is None else self.shared.answer(stage, key, here)

    def _lookup_here(self, stage: str, key: str) -> Lookup:
        folder = self.root / stage / key
        try:
            manifest = self._manifest_here(stage, key)
        except FileNotFoundError:
            acceptance = self.acceptance(stage, key)
            if acceptance is not None:
                return self._lookup_accepted(acceptance)
            if any(line["key"] == key for line in self.ledger(key)):
                return Lookup(status="deleted", reason="its artifact was deleted")
            return Lookup(status="missing")
        except (ValidationError, ValueError):
            return Lookup(status="damaged", reason=f"its manifest {folder / MANIFEST} is unreadable")
        if flaw := manifest_flaw(manifest, stage, key):
            return Lookup(status="damaged", reason=f"its manifest {folder / MANIFEST} was edited: {flaw}")
        problem = find_damage(folder, manifest.files, VerifiedFiles(self.verified_path(stage, key), self.remembers))
        if problem:
            return Lookup(status="damaged", reason=problem)
        return Lookup(status="hit", ref=manifest.ref())

    def _lookup_accepted(self, acceptance: Acceptance) -> Lookup:
        found = self.lookup(acceptance.kept.stage, acceptance.kept.key)
        if found.ref != acceptance.kept:
            why = f"{found.reason or 'its artifact is gone or was replaced'} ({acceptance.summary()})"
            return Lookup(status="damaged" if found.status == "damaged" else "deleted", reason=why)
        return Lookup(status="hit", ref=found.ref, reason=acceptance.summary(), accepted=acceptance.reason)

    def acceptance(self, stage: str, key: str) -> Acceptance | None:
        """The acceptance that answers for a key, if there is one."""
        path = self.acceptance_path(stage, key)
        return next(_read_acceptances([path])) if path.is_file() else None

    def acceptances(self, kept: ArtifactRef | None = None) -> list[Acceptance]:
        """All acceptances, or those of one artifact, oldest first."""
        found = _read_acceptances(self.root.glob(".accepted/*/*.json"))
        chosen = [one for one in found if kept is None or one.kept == kept]
        return sorted(chosen, key=lambda one: one.time)

    def acceptance_path(self, stage: str, key: str) -> Path:
        """Where the acceptance for a key is written; removing the file takes it back."""
        return self.root / ".accepted" / stage / f"{key}.json"

    def verified_path(self, stage: str, key: str) -> Path:
        """Where it is remembered which touched files of an artifact were found equal."""
        return self.root / ".verified" / f"{stage}-{key}.json"

    def manifest(self, stage: str, key: str) -> Manifest:
        """The manifest, be the artifact here or in the shared store; FileNotFoundError if there is no such artifact."""
        try:
            return self._manifest_here(stage, key)
        except FileNotFoundError:
            if self.shared is None:
                raise
            return self.shared.manifest(stage, key)

    def _manifest_here(self, stage: str, key: str) -> Manifest:
        return Manifest.model_validate_json((self.root / stage / key / MANIFEST).read_bytes())

    def manifests(self) -> Iterator[Manifest]:
        """All artifacts of this root, oldest first; a folder whose manifest cannot be read is none."""
        return self._manifests_in("[!.]*/*")

    def manifests_of(self, key: str) -> Iterator[Manifest]:
        """The artifacts with this key: one, or none."""
        return self._manifests_in(f"[!.]*/{glob.escape(key)}")

    def _manifests_in(self, folders: str) -> Iterator[Manifest]:
        found = []
        for path in self.root.glob(f"{folders}/{MANIFEST}"):
            if ".tmp-" not in path.parent.name:
                with suppress(FileNotFoundError, ValidationError):
                    found.append(Manifest.model_validate_json(path.read_bytes()))
        return iter(sorted(found, key=lambda manifest: manifest.producer.started))

    def find(self, prefix: str) -> Manifest:
        """The one artifact whose key starts with `prefix`, KEY or stage/KEY; ValueError if none or several."""
        stage, _, key = prefix.rpartition("/")
        matches = list(self._manifests_in(f"{glob.escape(stage) or '[!.]*'}/{glob.escape(key)}*")) if key else []
        if key and not matches and self.shared is not None:
            matches = list(self.shared.manifests(prefix))
        if len(matches) != 1:
            what = "no artifact" if not matches else f"{len(matches)} artifacts"
            raise ValueError(f"{what} with key {prefix!r}: 'alignflow artifacts ls' shows the keys")
        return matches[0]

    def has_key(self, beginning: str) -> bool:
        """Whether some key begins so, here or in the shared store."""
        there = self.shared.manifests(beginning) if self.shared is not None else iter(())
        return any(self._manifests_in(f"[!.]*/{beginning}*")) or any(there)

    def publish(self, source: Path, draft: ManifestDraft, guard: Callable[[], None] | None = None) -> ArtifactRef:
        """Make the files under `source` the artifact `draft` describes: manifest last, then one rename.

        `source` lies on the store's disk. Until the rename it stays where it is, so that a run that is cut off
        here finds its record again. With a shared store the artifact is then uploaded, `guard` asked before each
        write (`alignment_core.shared_store.SharedStore.share`, for what that raises and returns).
        """
        target = self.root / draft.stage / draft.key
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in source.rglob("*"):
            sync_folder(path) if path.is_dir() else sync_file(path)
        files = {
            path.relative_to(source).as_posix(): describe_file(path)
            for path in sorted(source.rglob("*"))
            if path.is_file()
        }
        manifest = Manifest(**draft.model_dump(), files=files, digest=content_digest(files))
        write_durably(source / MANIFEST, manifest.model_dump_json(indent=1))
        if target.exists():
            shutil.rmtree(target)
        source.rename(target)
        sync_folder(target.parent)
        note_publication(self._ledger_path, manifest.stage, manifest.key, manifest.label)
        return manifest.ref() if self.shared is None else self.shared.share(manifest, guard)

    def ledger(self, mentioning: str = "") -> list[dict[str, Any]]:
        """Every publication ever made here: stage, key, label, time; oldest first.

        With `mentioning`, only the lines that have this text somewhere: to decode them all is what takes long.
        """
        return read_ledger(self._ledger_path, mentioning)

    @property
    def _ledger_path(self) -> Path:
        return self.root / ".ledger.jsonl"


def _read_acceptances(paths: Iterable[Path]) -> Iterator[Acceptance]:
    for path in paths:
        try:
            yield Acceptance.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path} is unreadable: remove it, and accept the artifact again") from error
