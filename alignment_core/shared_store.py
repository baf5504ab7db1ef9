"""A shared store as one root sees it: the root's own store is its cache.

    URL/<stage>/<key>/<folder>/…        content and record of one publication
    URL/<stage>/<key>/manifest.json     the same manifest as in the root, created last, by one publication only
    URL/.attempts/<stage>-<key>/        who computes it (alignment_core.attempts)
    URL/.work/<stage>-<key>/            checkpoints of a stage under way (alignment_core.shared_checkpoints)

    ROOT/.shared/<place>/<stage>/<key>.json     the manifest as last seen there; its time is that of the last use
    ROOT/.shared/<place>/damaged/<stage>-<key>  the folder of a publication that was found damaged when it was fetched
    ROOT/.incoming/<stage>-<key>/               an artifact on its way here

<folder> is made of the digests of all files, records included: two publications never share one, so that a late
upload of a host that was thought dead spoils nothing. What is downloaded is read by sha256 before it counts.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from alignment_core.cache_bound import shrink
from alignment_core.durable import sync_file, sync_folder, write_durably
from alignment_core.locks import held
from alignment_core.manifest import MANIFEST, RECORD, Manifest, file_sha256, manifest_flaw
from alignment_core.records import ArtifactRef
from alignment_core.remote import RemoteFolder, StoreError, StoreUnreachable, patiently
from alignment_core.shared_manifests import content_folder, is_plain, names_flaw, require_plain
from alignment_core.sharing import STORE_PATIENCE, setting
from alignment_core.store import Lookup, Store

ASK_PATIENCE = 30.0
"""Longest wait, in seconds, where a person waits for the answer: whether an artifact is there."""
Guard = Callable[[], None]


class SharedStore:
    """The shared store behind one root's store."""

    def __init__(
        self, remote: RemoteFolder, root: Path, cache_bytes: float = float("inf"), remembers: bool = True
    ) -> None:
        """root: the store folder of the root. remembers: as for `Store`; else the root is only read."""
        self.remote = remote
        self.root = root
        self.cache_bytes = cache_bytes
        self.remembers = remembers
        self.here = Store(root, remembers)
        self.notes = root / ".shared" / remote.identity

    @property
    def patience(self) -> float:
        """Longest wait for the store, in seconds, where the alternative is to fail."""
        return setting(STORE_PATIENCE)

    # Looking

    def answer(self, stage: str, key: str, here: Lookup) -> Lookup:
        """What to say of a key, given what the root says: where both have another content, the shared one counts.

        An artifact here that is known to be there is not asked for again. Raises StoreUnreachable if only the shared
        store could tell.
        """
        if here.ref is not None and (here.accepted or self.is_noted(here.ref)):
            self._touch(stage, key)
            return here
        try:
            manifest = patiently(lambda: self.read_manifest(stage, key), 0.0 if here.ref else self._ask_patience())
        except FileNotFoundError:
            return here
        except ValueError as error:
            return here if here.ref is not None else Lookup(status="damaged", reason=str(error))
        except StoreError:
            if here.ref is None:
                raise
            return here
        if here.ref == manifest.ref():
            self._note(manifest)
            return here
        if flaw := self.find_flaw(manifest):
            return here if here.ref is not None else Lookup(status="damaged", reason=flaw)
        self._note(manifest)
        reason = f"{here.reason}; the shared store has it" if here.status == "damaged" else "in the shared store"
        return Lookup(status="hit", ref=manifest.ref(), reason=reason)

    def _ask_patience(self) -> float:
        return min(ASK_PATIENCE, self.patience) if self.remembers else 0.0

    def read_manifest(self, stage: str, key: str) -> Manifest:
        """The manifest there. FileNotFoundError if there is none, ValueError if it is none to be trusted."""
        place = f"{self.remote.url}/{stage}/{key}/{MANIFEST}"
        require_plain(stage, key)
        content = self.remote.read(f"{stage}/{key}/{MANIFEST}")
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError as error:
            raise ValueError(f"its manifest {place} is unreadable") from error
        if flaw := manifest_flaw(manifest, stage, key) or names_flaw(manifest):
            raise ValueError(f"its manifest {place} was edited: {flaw}")
        return manifest

    def find_flaw(self, manifest: Manifest) -> str:
        """What is wrong with the files there, as far as a listing shows, in words; empty if nothing."""
        place = f"{manifest.stage}/{manifest.key}/{content_folder(manifest)}"
        if self._damage_path(manifest).is_file() and self._damage_path(manifest).read_text() == content_folder(
            manifest
        ):
            return f"its copy in the shared store ({self.remote.url}/{place}) is damaged"
        sizes = self.remote.sizes(place)
        for name, entry in manifest.files.items():
            if sizes.get(name) != entry.size:
                what = "missing" if name not in sizes else f"of {sizes[name]} bytes, not {entry.size}"
                return f"its file {self.remote.url}/{place}/{name} is {what}"
        return ""

    def manifest(self, stage: str, key: str) -> Manifest:
        """The manifest as last seen, else as it is there; FileNotFoundError if there is none."""
        return self.noted(stage, key) or self.read_manifest(stage, key)

    def manifests(self, prefix: str = "") -> Iterator[Manifest]:
        """Manifests there of keys that begin with `prefix` (KEY or stage/KEY), without those not to be trusted."""
        wanted, _, beginning = prefix.rpartition("/")
        for stage in self.remote.children(""):
            if is_plain(stage) and wanted in ("", stage):
                for key in self.remote.children(stage):
                    if key.startswith(beginning) and is_plain(key):
                        with suppress(FileNotFoundError, ValueError):
                            yield self.noted(stage, key) or self._see(stage, key)

    def _see(self, stage: str, key: str) -> Manifest:
        manifest = self.read_manifest(stage, key)
        self._note(manifest)
        return manifest

    # Bringing

    def bring(self, ref: ArtifactRef) -> Path:
        """The artifact's folder in the root, downloaded and verified first if it is not there.

        Raises FileNotFoundError if neither has it, ValueError if what is there is not what `ref` says.
        """
        folder = self.root / ref.stage / ref.key
        if self._is_here(ref):
            return folder
        with held(self.root / ".locks" / "fetch" / f"{ref.stage}-{ref.key}.lock"):
            if not self._is_here(ref):
                self._fetch(ref, folder)
        shrink(self)
        return folder

    def bring_record(self, ref: ArtifactRef) -> Path:
        """A folder with the artifact's record and its small files at the top, without what is heavy (weights)."""
        if self._is_here(ref):
            return self.root / ref.stage / ref.key
        manifest = self._trusted(ref)
        wanted = [
            name for name in manifest.files if name.startswith(f"{RECORD}/") or re.fullmatch(r"[^/]+\.json", name)
        ]
        folder = self.notes / "records" / f"{ref.stage}-{ref.key}" / content_folder(manifest)
        with held(self.root / ".locks" / "fetch" / f"{ref.stage}-{ref.key}.lock"):
            self._download(manifest, wanted, folder)
        return folder

    def _is_here(self, ref: ArtifactRef) -> bool:
        with suppress(FileNotFoundError, ValueError):
            if self.here.manifest(ref.stage, ref.key).ref() != ref:
                return False
            found = self.here.lookup(ref.stage, ref.key)
            self._touch(ref.stage, ref.key)
            return found.ref == ref
        return False

    def _trusted(self, ref: ArtifactRef) -> Manifest:
        manifest = patiently(lambda: self.read_manifest(ref.stage, ref.key), self.patience)
        if manifest.ref() != ref:
            raise ValueError(
                f"{ref.stage}/{ref.key[:12]} has another content in {self.remote.url} than was asked for: run the "
                "study again, which goes by what the store holds now"
            )
        return manifest

    def _fetch(self, ref: ArtifactRef, folder: Path) -> None:
        try:
            manifest = self._trusted(ref)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{ref.stage}/{ref.key[:12]} is neither in {self.root} nor in {self.remote.url}: run the study that "
                "makes it"
            ) from error
        staging = self.root / ".incoming" / f"{ref.stage}-{ref.key}"
        self._download(manifest, list(manifest.files), staging)
        listed = {MANIFEST, *manifest.files}
        for path in [path for path in staging.rglob("*") if path.is_file()]:
            if path.relative_to(staging).as_posix() not in listed:  # of an earlier publication of the key
                path.unlink()
        write_durably(staging / MANIFEST, manifest.model_dump_json(indent=1))
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            replaced = folder.with_name(f"{folder.name}.tmp-replaced{os.getpid()}")
            folder.rename(replaced)
            shutil.rmtree(replaced)
        staging.rename(folder)
        sync_folder(folder.parent)
        self._note(manifest)

    def _download(self, manifest: Manifest, names: list[str], staging: Path) -> None:
        """Files into `staging`, each read by sha256; those that are there and right already are kept."""
        for name in names:
            entry, target = manifest.files[name], staging / name
            if not (target.is_file() and target.stat().st_size == entry.size and file_sha256(target) == entry.sha256):
                target.parent.mkdir(parents=True, exist_ok=True)
                self._download_one(manifest, name, target)
            os.utime(target, ns=(entry.mtime_ns, entry.mtime_ns))

    def _download_one(self, manifest: Manifest, name: str, target: Path) -> None:
        source = f"{manifest.stage}/{manifest.key}/{content_folder(manifest)}/{name}"
        for _ in range(2):  # a connection can spoil what the store has whole
            try:
                patiently(lambda: self.remote.get(source, target), self.patience)
            except FileNotFoundError:
                break
            if file_sha256(target) == manifest.files[name].sha256:
                sync_file(target)
                return
            target.unlink()
        mark = self._damage_path(manifest)
        mark.parent.mkdir(parents=True, exist_ok=True)
        write_durably(mark, content_folder(manifest))
        raise ValueError(
            f"{self.remote.url}/{source} is not what its manifest says (missing, or another sha256): nothing of it was "
            "used. Run the same command again: the stage is then computed anew, and its copy there replaced"
        )

    # Sharing

    def share(self, manifest: Manifest, guard: Guard | None = None, patience: float | None = None) -> ArtifactRef:
        """Upload an artifact of the root, manifest last; the reference that counts for everybody from now on.

        That is another one if another host published the same key meanwhile: the first stays. guard is called before
        each write, and ends it by raising (`alignment_core.attempts.Superseded`). Raises StoreUnreachable once
        `patience` seconds (default: `ALIGNFLOW_STORE_PATIENCE`) have passed; the artifact is whole here all the same.
        """
        waits = self.patience if patience is None else patience
        try:
            there = patiently(lambda: self._upload(manifest, guard or (lambda: None)), waits)
        except StoreUnreachable as error:
            raise StoreUnreachable(
                f"{manifest.stage}/{manifest.key[:12]} is finished and whole in {self.root}, but not shared: {error}. "
                "The next run that asks for it uploads it"
            ) from error
        self._note(there)
        self._damage_path(manifest).unlink(missing_ok=True)
        shrink(self)
        return there.ref()

    def _upload(self, manifest: Manifest, guard: Guard) -> Manifest:
        """Files, then the manifest; the manifest that is there in the end."""
        place, folder = f"{manifest.stage}/{manifest.key}", content_folder(manifest)
        there = self._standing(manifest)
        if there is not None:
            return there
        present = self.remote.sizes(f"{place}/{folder}")
        for name, entry in manifest.files.items():
            if present.get(name) != entry.size or self._damage_path(manifest).is_file():
                guard()
                self.remote.put(self.root / place / name, f"{place}/{folder}/{name}")
        guard()
        content = manifest.model_dump_json(indent=1).encode()
        if self.remote.create(f"{place}/{MANIFEST}", content):
            return manifest
        there = self._standing(manifest)
        if there is None:  # damaged: ours takes its place
            guard()
            self.remote.write(f"{place}/{MANIFEST}", content)
        return there or manifest

    def _standing(self, manifest: Manifest) -> Manifest | None:
        """The publication of a key that is there, unless it is damaged."""
        try:
            there = self.read_manifest(manifest.stage, manifest.key)
        except (FileNotFoundError, ValueError):
            return None
        return None if self.find_flaw(there) else there

    def share_if_absent(self, ref: ArtifactRef) -> str:
        """Upload an artifact of the root that the shared store may lack; what to tell, empty if nothing.

        For those that were computed before there was a shared store, or while it could not be reached.
        """
        try:
            manifest = self.here.manifest(ref.stage, ref.key)
        except (FileNotFoundError, ValueError):
            return ""
        if manifest.ref() != ref or self.is_noted(ref):
            return ""
        try:
            self.share(manifest, patience=0.0)
        except StoreError as error:
            return str(error)
        return f"{manifest.label} is shared now"

    # What the root knows of the shared store

    def noted(self, stage: str, key: str) -> Manifest | None:
        """The manifest as last seen there."""
        with suppress(OSError, ValidationError):
            return Manifest.model_validate_json(self.note_path(stage, key).read_bytes())
        return None

    def is_noted(self, ref: ArtifactRef) -> bool:
        """Whether the shared store is known to have this very artifact."""
        noted = self.noted(ref.stage, ref.key)
        return noted is not None and noted.ref() == ref

    def note_path(self, stage: str, key: str) -> Path:
        """Where a manifest of the shared store is kept."""
        return self.notes / stage / f"{key}.json"

    def _note(self, manifest: Manifest) -> None:
        if self.noted(manifest.stage, manifest.key) == manifest:
            self._touch(manifest.stage, manifest.key)
        elif self.remembers:
            path = self.note_path(manifest.stage, manifest.key)
            path.parent.mkdir(parents=True, exist_ok=True)
            staged = path.with_name(f"{path.name}.{os.getpid()}")
            staged.write_text(manifest.model_dump_json(), encoding="utf-8")
            staged.rename(path)

    def _touch(self, stage: str, key: str) -> None:
        if self.remembers:
            with suppress(FileNotFoundError):
                os.utime(self.note_path(stage, key))

    def _damage_path(self, manifest: Manifest) -> Path:
        return self.notes / "damaged" / f"{manifest.stage}-{manifest.key}"
