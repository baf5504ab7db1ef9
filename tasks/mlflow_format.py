"""Small parts of the tracker that need no MLflow: how things are written there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment_core.events import Event
from alignment_core.redaction import redact

PARAM_LENGTH = 6000
TAG_LENGTH = 8000
"""MLflow's own limits of characters."""
CUT = " … (cut: the store has all of it)"
UNSAFE_IN_MODEL_NAMES = str.maketrans({character: "-" for character in "/:.%\"'"})


def pending_marker(root: Path, key: str) -> Path:
    """The file that says: this stage began, and its record is not all in MLflow yet."""
    return root / "mlruns" / "pending" / key


def system_record(root: Path, key: str) -> Path:
    """The file that keeps what the host's meters showed while a stage ran, for a rebuild."""
    return root / "mlruns" / "system" / f"{key}.jsonl"


def run_address(uri: str, experiment: str, run: str) -> str:
    """Where a person finds a run: its page on a tracking server; for a local database "", which has no page yet."""
    if not uri.startswith(("http://", "https://")):
        return ""
    return f"{redact(uri).replace('***@', '').rstrip('/')}/#/experiments/{experiment}/runs/{run}"


def flatten(value: object, prefix: str = "") -> dict[str, str]:
    """Leaves of nested settings by dotted name, as text; lists stay whole."""
    if isinstance(value, dict):
        flat: dict[str, str] = {}
        for name, item in value.items():
            flat.update(flatten(item, f"{prefix}.{name}" if prefix else name))
        return flat
    return {prefix: str(value)}


def as_params(settings: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as MLflow takes them: flat, without secrets, long ones cut, with a word that says so."""
    return {name: cut(redact(text), PARAM_LENGTH) for name, text in flatten(dict(settings)).items()}


def cut(text: str, length: int) -> str:
    """At most `length` characters of a text; says so where it is shortened."""
    return text if len(text) <= length else text[: length - len(CUT)] + CUT


def as_table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows as MLflow's tables have them, missing cells empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": names, "data": [[row.get(name, "") for name in names] for row in rows]}


def milliseconds(moment: float | None) -> int | None:
    """A Unix time as MLflow has it; None stays None, which is now."""
    return None if moment is None else int(moment * 1000)


def read_meters(path: Path) -> list[Event]:
    """What `tasks.system_metrics` kept of a stage; a line that a kill cut off is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [Event.model_validate_json(line) for line in lines if line.endswith("\n")]
