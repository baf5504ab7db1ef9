"""Why a key is new: what differs between two sets of components, in words."""

from pydantic import ValidationError

from alignment_core.store import Components, Store


def explain_miss(store: Store, components: Components, label: str) -> str:
    """Why this key is new: what differs from the latest artifact of the same stage and label."""
    for line in reversed(store.ledger(label)):
        if line["stage"] != components.stage or line["label"] != label:
            continue
        try:
            previous = store.manifest(line["stage"], line["key"]).components
        except (FileNotFoundError, ValidationError):
            continue
        return "; ".join(differences(previous, components)) or "nothing it depends on changed"
    return "first run"


def differences(old: Components, new: Components, most: int = 4) -> list[str]:
    """Readable list of what changed between two sets of components, at most `most` of each kind."""
    lines = []
    for kind in ("config", "inputs", "code", "versions"):
        before, after = _flatten(getattr(old, kind)), _flatten(getattr(new, kind))
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        # An empty list or section that got members is told by its members.
        changed = [name for name in changed if not any(other.startswith(f"{name}.") for other in changed)]
        shown = [
            f"{name} {_brief(before.get(name, 'absent'))} -> {_brief(after.get(name, 'absent'))}"
            if kind in {"config", "versions"}
            else name
            for name in changed[:most]
        ]
        if changed:
            more = f" and {len(changed) - most} more" if len(changed) > most else ""
            lines.append(f"{kind} changed: {', '.join(shown)}{more}")
    return lines


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
