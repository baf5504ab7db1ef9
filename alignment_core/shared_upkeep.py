"""Looking after a shared store: every byte against the manifests, and removal of what kills left behind.

Artifacts themselves are never removed from it by this: no root can tell which of them the studies of other roots
stand on. A removal by hand (manifest.json first) is felt as a deletion by every root, and computed anew where asked.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence

from alignment_core.attempts import FOLDER as ATTEMPTS
from alignment_core.attempts import under_way
from alignment_core.audit import Finding
from alignment_core.manifest import MANIFEST
from alignment_core.records import Record
from alignment_core.shared_checkpoints import FOLDER as WORK
from alignment_core.shared_manifests import content_folder, is_plain
from alignment_core.shared_store import SharedStore

DAY = 86_400.0
LEAST_DAYS = 1.0
"""What is younger may be an upload that is under way."""


class SharedItem(Record):
    """One thing to remove from a shared store."""

    path: str
    bytes: int
    what: str


def verify_shared(shared: SharedStore, prefixes: Sequence[str] = ()) -> Iterator[tuple[str, list[Finding]]]:
    """(`stage/key`, findings) of every artifact of the shared store, or of those of some prefixes (KEY or stage/KEY).

    Reads every byte, and keeps none. Raises ValueError for a prefix that matches nothing.
    """
    names = list(_artifacts(shared))
    for prefix in prefixes:
        if not any(_matches(name, prefix) for name in names):
            raise ValueError(f"no artifact with key {prefix!r}: 'alignflow artifacts ls' shows the keys")
    for name in names:
        if not prefixes or any(_matches(name, prefix) for prefix in prefixes):
            stage, _, key = name.partition("/")
            yield name, list(_findings(shared, stage, key))


def _artifacts(shared: SharedStore) -> Iterator[str]:
    for stage in filter(is_plain, shared.remote.children("")):
        for key in filter(is_plain, shared.remote.children(stage)):
            yield f"{stage}/{key}"


def _matches(name: str, prefix: str) -> bool:
    return name.startswith(prefix) or name.partition("/")[2].startswith(prefix)


def _findings(shared: SharedStore, stage: str, key: str) -> Iterator[Finding]:
    remedy = f"remove {stage}/{key} from the shared store; who has it whole uploads it again, else it is computed anew"

    def finding(label: str, file: str, problem: str) -> Finding:
        return Finding(stage=stage, key=key, label=label, file=file, problem=problem, remedy=remedy)

    try:
        manifest = shared.read_manifest(stage, key)
    except FileNotFoundError:
        return  # an upload under way, or one that was cut off: nothing that counts
    except ValueError as error:
        yield finding("", MANIFEST, str(error))
        return
    place = f"{stage}/{key}/{content_folder(manifest)}"
    sizes = shared.remote.sizes(place)
    for name, entry in manifest.files.items():
        if sizes.get(name) != entry.size:
            found = f"{sizes[name]} bytes, not {entry.size}" if name in sizes else "missing"
            yield finding(manifest.label, name, found)
            continue
        digest = hashlib.sha256()
        for chunk in shared.remote.chunks(f"{place}/{name}"):
            digest.update(chunk)
        if digest.hexdigest() != entry.sha256:
            yield finding(manifest.label, name, "content differs (sha256)")


def sweep(shared: SharedStore, keep_days: float, dry_run: bool) -> list[SharedItem]:
    """Remove from the shared store what kills left there, untouched for `keep_days` (at least one); return it.

    Files of publications that were never completed or were replaced, and checkpoints of stages that are published
    or abandoned. A dry run returns the same and removes nothing.
    """
    horizon = time.time() - max(keep_days, LEAST_DAYS) * DAY
    items = []
    for item in [*_stray_files(shared, horizon), *_old_work(shared, horizon)]:
        items.append(item)
        if not dry_run:
            shared.remote.remove(item.path)
    return items


def _stray_files(shared: SharedStore, horizon: float) -> Iterator[SharedItem]:
    for name in _artifacts(shared):
        stage, _, key = name.partition("/")
        try:
            named = content_folder(shared.read_manifest(stage, key))
        except FileNotFoundError:
            named = ""
        except ValueError:
            continue  # `verify_shared` tells of it
        for folder in shared.remote.children(name):
            if folder not in (MANIFEST, named):
                yield from _if_old(shared, f"{name}/{folder}", horizon, "no manifest names these files")


def _old_work(shared: SharedStore, horizon: float) -> Iterator[SharedItem]:
    alive = {one.name for one in under_way(shared.remote) if one.beat is not None and one.beat.time >= horizon}
    for name in shared.remote.children(WORK):
        if name not in alive:
            yield from _if_old(shared, f"{WORK}/{name}", horizon, "checkpoints that nobody goes on from")
    published = set(_artifacts(shared))
    for name in shared.remote.children(ATTEMPTS):
        if name not in alive and name.rpartition("-")[0] + "/" + name.rpartition("-")[2] not in published:
            yield from _if_old(shared, f"{ATTEMPTS}/{name}", horizon, "attempts at a stage that was never finished")


def _if_old(shared: SharedStore, path: str, horizon: float, what: str) -> Iterator[SharedItem]:
    changed = shared.remote.ages(path)
    if changed and max(changed.values()) < horizon:
        yield SharedItem(path=path, bytes=sum(shared.remote.sizes(path).values()), what=what)
