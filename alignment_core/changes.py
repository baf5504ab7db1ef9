"""Why a key is new: what differs between two sets of components, in words."""

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from pydantic import ValidationError

from alignment_core.manifest import Components
from alignment_core.store import Store

KINDS = ("config", "inputs", "code", "versions")


CANDIDATES = 5
"""How many of the latest artifacts of a label are looked at: studies that share a root share labels, too."""


def explain_miss(store: Store, components: Components, label: str) -> str:
    """Why this key is new: what differs from the nearest of the latest artifacts of the same stage and label."""
    earlier = list(islice(_latest(store, components.stage, label), CANDIDATES))
    if not earlier:
        return "first run"
    nearest = min(earlier, key=lambda old: sum(len(_changed(old, components, kind)) for kind in KINDS))
    return "; ".join(differences(nearest, components)) or "nothing it depends on changed"


def _latest(store: Store, stage: str, label: str) -> Iterator[Components]:
    """What the artifacts of a label were made of, the latest publication first."""
    seen = set()
    for line in reversed(store.ledger(label)):
        if (line["stage"], line["label"]) == (stage, label) and line["key"] not in seen:
            seen.add(line["key"])
            with suppress(FileNotFoundError, ValidationError):
                yield store.manifest(stage, line["key"]).components


def differences(old: Components, new: Components, most: int = 4) -> list[str]:
    """Readable list of what changed between two sets of components, at most `most` of each kind."""
    lines = []
    for kind in KINDS:
        changed = _changed(old, new, kind)
        if changed:
            spelled = kind in {"config", "versions"}
            shown = [_change(name, *values) if spelled else name for name, values in islice(changed.items(), most)]
            more = f" and {len(changed) - most} more" if len(changed) > most else ""
            lines.append(f"{kind} changed: {', '.join(shown)}{more}")
    return lines


def _changed(old: Components, new: Components, kind: str) -> dict[str, tuple[object, object]]:
    """What differs in one kind of component: dotted name -> (before, now), by name."""
    before, after = _flatten(getattr(old, kind)), _flatten(getattr(new, kind))
    names = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    return {
        name: (before.get(name, "absent"), after.get(name, "absent"))
        for name in names
        # An empty list or section that got members is told by its members.
        if not any(other.startswith(f"{name}.") for other in names)
    }


def _change(name: str, old: object, new: object) -> str:
    if any(re.fullmatch("[0-9a-f]{32,}", str(value)) for value in (old, new)):
        return name  # a digest tells nobody anything
    return f"{name} {_brief(old)} -> {_brief(new)}"


def _brief(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:37]}..."


def _flatten(value: object, prefix: str = "") -> dict[str, object]:
    """Leaves of nested dicts and lists by dotted name."""
    if not isinstance(value, dict | list) or (prefix and not value):
        return {prefix: value}
    flat: dict[str, object] = {}
    for name, item in value.items() if isinstance(value, dict) else enumerate(value):
        flat.update(_flatten(item, f"{prefix}.{name}" if prefix else str(name)))
    return flat
