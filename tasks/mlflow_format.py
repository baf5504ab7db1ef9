"""Small parts of the tracker that need no MLflow: how things are written there."""

from pathlib import Path
from typing import Any


def pending_marker(root: Path, key: str) -> Path:
    """The file that says: this stage began, and its record is not all in MLflow yet."""
    return root / "mlruns" / "pending" / key


def flatten(value: object, prefix: str = "") -> dict[str, str]:
    """Leaves of nested settings by dotted name, as text; lists stay whole."""
    if isinstance(value, dict):
        flat: dict[str, str] = {}
        for name, item in value.items():
            flat.update(flatten(item, f"{prefix}.{name}" if prefix else name))
        return flat
    return {prefix: str(value)}


def as_table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows as MLflow's tables have them, missing cells empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": names, "data": [[row.get(name, "") for name in names] for row in rows]}


def milliseconds(moment: float | None) -> int | None:
    """A Unix time as MLflow has it; None stays None, which is now."""
    return None if moment is None else int(moment * 1000)
