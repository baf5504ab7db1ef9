"""Looking after a root, for people: verification, removal of what nothing needs, MLflow from the store."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from alignment_core.audit import verify
from alignment_core.redaction import redact
from alignment_core.retention import collect
from alignment_core.shared_store import SharedStore
from alignment_core.shared_upkeep import sweep, verify_shared
from alignment_core.store import Store
from flows.shelf import existing_store


def verify_artifacts(root: Path, keys: Sequence[str], shared: bool = False) -> Iterator[tuple[str, bool]]:
    """(line, whether it tells of damage); the last line counts. shared: those of the shared store instead."""
    checked = damaged = 0
    store = existing_store(root)
    for name, findings in verify_shared(_shared_store(store), keys) if shared else verify(store, keys):
        checked += 1
        damaged += bool(findings)
        stage, _, key = name.partition("/")
        for one in findings:
            what = f"{one.file}: {one.problem}" if one.file else one.problem
            yield f"{key[:12]}  {stage:12} {one.label or '?'}\n    {what}\n    -> {one.remedy}", True
    yield f"{checked} artifacts read and compared by sha256: {damaged or 'none'} damaged", False


def remove_unneeded(root: Path, keep_days: float, dry_run: bool, states: bool) -> Iterator[str]:
    """One line per item that is removed, or would be: bytes, kind, which, why; then the sum.

    A shared store is not touched: what goes here comes back from there when it is asked for.
    Raises ValueError if a study run is under way.
    """
    items = collect(existing_store(root), keep_days, dry_run, states)
    for item in items:
        yield f"{item.bytes:>15,} B  {item.kind:22} {item.stage}/{item.key[:12]}  {item.what}"
    yield _sum_line([item.bytes for item in items], dry_run)


def sweep_shared(root: Path, keep_days: float, dry_run: bool) -> Iterator[str]:
    """The same for what kills left in the shared store; artifacts stay, for other roots may stand on them."""
    items = sweep(_shared_store(existing_store(root)), keep_days, dry_run)
    for item in items:
        yield f"{item.bytes:>15,} B  {item.path}  {item.what}"
    yield _sum_line([item.bytes for item in items], dry_run)


def _sum_line(sizes: Sequence[int], dry_run: bool) -> str:
    return f"{sum(sizes):>15,} B  in {len(sizes)} items {'would be removed' if dry_run else 'removed'}"


def _shared_store(store: Store) -> SharedStore:
    if store.shared is None:
        raise ValueError("there is no shared store: set ALIGNFLOW_STORE to its folder or URL")
    return store.shared


def rebuild_mlflow(root: Path) -> Iterator[str]:
    """Make MLflow anew from the store; says what it wrote."""
    from tasks.rebuild import rebuild
    from tasks.tracking import tracking_uri

    existing_store(root)
    yield f"{rebuild(root)} in {redact(tracking_uri(root))}; restart an MLflow server that was running"
