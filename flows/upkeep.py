"""Looking after a root, for people: verification, removal of what nothing needs, MLflow from the store."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from alignment_core.audit import verify
from alignment_core.retention import collect
from flows.shelf import open_store


def verify_artifacts(root: Path, keys: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """(line, whether it tells of damage); the last line counts."""
    checked = damaged = 0
    for name, findings in verify(open_store(root), keys):
        checked += 1
        damaged += bool(findings)
        stage, _, key = name.partition("/")
        for one in findings:
            what = f"{one.file}: {one.problem}" if one.file else one.problem
            yield f"{key[:12]}  {stage:12} {one.label or '?'}\n    {what}\n    -> {one.remedy}", True
    yield f"{checked} artifacts read and compared by sha256: {damaged or 'none'} damaged", False


def remove_unneeded(root: Path, keep_days: float, dry_run: bool, states: bool) -> Iterator[str]:
    """One line per item that is removed, or would be: bytes, kind, which, why; then the sum.

    Raises ValueError if a study run is under way.
    """
    items = collect(open_store(root), keep_days, dry_run, states)
    for item in items:
        yield f"{item.bytes:>15,} B  {item.kind:22} {item.stage}/{item.key[:12]}  {item.what}"
    total = sum(item.bytes for item in items)
    verb = "would be removed" if dry_run else "removed"
    yield f"{total:>15,} B  in {len(items)} items {verb}"


def rebuild_mlflow(root: Path) -> Iterator[str]:
    """Make MLflow anew from the store; says what it wrote."""
    from tasks.rebuild import rebuild
    from tasks.tracking import tracking_uri

    open_store(root)
    yield f"{rebuild(root)} in {tracking_uri(root)}; restart an MLflow server that was running"
