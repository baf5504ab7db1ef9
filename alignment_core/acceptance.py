"""Keeping an artifact whose code changed harmlessly: it goes on answering, under the key of today's code.

Only code may differ, and a person says why that is harmless. The artifact itself is not touched; the record of the
acceptance lies beside it in the store, is part of what `artifacts show` tells, and marks the stage in the report.
"""

import time
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from alignment_core.changes import differences
from alignment_core.config_base import Config
from alignment_core.durable import write_durably
from alignment_core.fingerprint import read_module, stage_fingerprint
from alignment_core.manifest import Components, Manifest
from alignment_core.records import ArtifactRef
from alignment_core.store import Acceptance, Store

EVERY = 1_000_000
"""A person vouches for each change, so none is left out of the record."""


def accept(store: Store, manifest: Manifest, reason: str) -> Acceptance:
    """Let an artifact answer for the key that today's code gives the same settings, inputs and versions.

    Raises ValueError, naming what is in the way, if anything but code differs, if the artifact is damaged, if
    nothing changed, or if the new key has an artifact already.
    """
    name = f"{manifest.label} ({manifest.stage}/{manifest.key[:12]})"
    if not reason.strip():
        raise ValueError(f"give the reason why the change of code does not matter to {name}: --reason TEXT")
    found = store.lookup(manifest.stage, manifest.key)
    if found.ref is None:
        raise ValueError(f"{name} cannot be accepted: {found.reason}. Run the study again to replace it")
    today = components_today(store, manifest)
    before = manifest.components.model_copy(update={"config": _still_read(manifest.components.config, today.config)})
    changed = differences(before, today, most=EVERY)
    if not changed:
        raise ValueError(f"nothing changed since {name} was computed: it is what today's code asks for")
    beyond = [line for line in changed if not line.startswith("code changed")]
    if beyond:
        raise ValueError(f"{name} cannot be accepted, since more than code differs: {'; '.join(beyond)}")
    taken = store.lookup(manifest.stage, today.key())
    if taken.ref is not None:
        answer = taken.reason or f"today's code has an artifact of its own, {taken.ref.key[:12]}"
        raise ValueError(f"{name} need not be accepted: {answer}")
    acceptance = Acceptance(kept=found.ref, components=today, reason=reason.strip(), changed=changed, time=time.time())
    path = store.acceptance_path(manifest.stage, today.key())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, acceptance.model_dump_json(indent=1))
    return acceptance


def components_today(store: Store, manifest: Manifest) -> Components:
    """What the key of the same stage would be made of if it were asked for now.

    Code and versions are those on this machine; settings are read by today's settings class, so that a new field
    shows; an input is today's artifact of the same origin where the store has one, else the one that was used.
    """
    code = stage_fingerprint(manifest.stage, manifest.components.config)
    return manifest.components.model_copy(
        update={
            "config": _settings_today(manifest),
            "inputs": _inputs_today(store, manifest, {}),
            "code": code.definitions,
            "versions": code.versions,
        }
    )


def settings_class(stage: str) -> type[Config]:
    """The settings class of a stage, found without importing the stage (and torch behind it)."""
    module = read_module(f"alignment_core.stages.{stage}")
    (name,) = module.definitions["CONFIG"].names - {"CONFIG"}
    home, _, attribute = module.imports[name].rpartition(".")
    found: type[Config] = getattr(import_module(home), attribute)
    return found


def inputs_to_rerun(store: Store, manifest: Manifest) -> list[Manifest]:
    """Inputs that today's code would compute anew: until they are accepted too, nobody asks for this artifact."""
    parents = [store.manifest(ref.stage, ref.key) for ref in manifest.parents.values() if _is_there(store, ref)]
    known: dict[str, ArtifactRef | None] = {}
    return [parent for parent in parents if _artifact_today(store, parent.ref(), known) is None]


def _settings_today(manifest: Manifest) -> dict[str, object]:
    try:
        settings = manifest.settings or manifest.components.config
        return settings_class(manifest.stage).model_validate(settings).key_settings()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"{manifest.label} ({manifest.stage}/{manifest.key[:12]}) cannot be accepted: "
            f"its settings are no longer valid ({where}: {first['msg']})"
        ) from error


def _config_today(manifest: Manifest) -> dict[str, object]:
    """The settings in today's key; those of the artifact's own where today's code does not take them any more."""
    try:
        return _settings_today(manifest)
    except ValueError:
        return manifest.components.config


def _still_read(before: Mapping[str, Any], today: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a key without those that have left keys since, because nothing depends on them."""
    return {
        name: _still_read(value, today[name]) if isinstance(value, dict) and isinstance(today[name], dict) else value
        for name, value in before.items()
        if name in today
    }


def _inputs_today(store: Store, manifest: Manifest, known: dict[str, ArtifactRef | None]) -> dict[str, str]:
    return {
        name: (_artifact_today(store, ref, known) or ref).digest if _is_there(store, ref) else ref.digest
        for name, ref in manifest.parents.items()
    }


def _artifact_today(store: Store, ref: ArtifactRef, known: dict[str, ArtifactRef | None]) -> ArtifactRef | None:
    """What the store would answer with now where it once answered with `ref`; None if that stage would run."""
    if ref.key not in known:
        manifest = store.manifest(ref.stage, ref.key)
        code = stage_fingerprint(ref.stage, manifest.components.config)
        update = {
            "config": _config_today(manifest),
            "inputs": _inputs_today(store, manifest, known),
            "code": code.definitions,
            "versions": code.versions,
        }
        known[ref.key] = store.lookup(ref.stage, manifest.components.model_copy(update=update).key()).ref
    return known[ref.key]


def _is_there(store: Store, ref: ArtifactRef) -> bool:
    return store.lookup(ref.stage, ref.key).ref is not None
