"""Presets and overrides: from a name and `key=value` pairs to one validated `StudyConfig`."""

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from alignment_core.config import StudyConfig

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_config(preset: str, overrides: dict[str, Any] | None = None) -> StudyConfig:
    """The preset (a shipped name or a YAML file) with overrides, dotted or nested, merged in and validated.

    Raises ValueError that names the wrong key, offers the nearest right one, and says where it stands.
    """
    settings = _read(preset)
    for key, value in (overrides or {}).items():
        _assign(settings, key.split("."), value)
    try:
        return StudyConfig.model_validate(settings)
    except ValidationError as error:
        raise ValueError(f"preset {preset!r}: " + "; ".join(_explain(entry) for entry in error.errors())) from error


def parse_override(text: str) -> tuple[str, Any]:
    """`grpo.optimizer.learning_rate=2e-5` as key and YAML value."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"--set {text!r} is not key=value, e.g. --set grpo.n_grpo_steps=50")
    parsed = _parse_yaml(value, f"--set {text!r}")
    quoted = value.lstrip().startswith(("'", '"'))
    return key, _number(parsed) if isinstance(parsed, str) and not quoted else parsed


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {error}") from error


def _number(text: str) -> float | str:
    """YAML 1.1 reads 2e-5 as text; people mean the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _read(preset: str) -> dict[str, Any]:
    shipped = PRESETS / f"{preset}.yaml"
    path = shipped if shipped.is_file() else Path(preset)
    if not path.is_file():
        near = difflib.get_close_matches(preset, preset_names(), 1, 0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no preset {preset!r}: {hint}Shipped: {', '.join(preset_names())}; or give a YAML file")
    settings = _parse_yaml(path.read_text(encoding="utf-8"), f"preset {path}")
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is not a YAML mapping of study settings")
    return settings


def _assign(settings: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a dotted path; a mapping is merged into what is there, anything else replaces it."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            _assign(settings, [*path, *str(name).split(".")], item)
        return
    for name in path[:-1]:
        inner = settings.get(name)
        if not isinstance(inner, dict):
            inner = settings[name] = {}
        settings = inner
    settings[path[-1]] = value


def _explain(entry: Any) -> str:
    path = [part for part in entry["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    where = ".".join(str(part) for part in path) or "the study"
    if entry["type"] != "extra_forbidden":
        return f"{where}: {entry['msg'].removeprefix('Value error, ')}"
    near = difflib.get_close_matches(str(path[-1]), _fields(path[:-1]), 1, 0.5)
    return f"{where}: no such setting" + (f"; did you mean {near[0]!r}?" if near else "")


def _fields(path: list[Any]) -> list[str]:
    """Field names of the settings class at a path."""
    model: Any = StudyConfig
    for name in path:
        annotation = model.model_fields[name].annotation if name in model.model_fields else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)
