"""Presets and overrides: from a name and `key=value` pairs to one validated `StudyConfig`."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from alignment_core.experiments import assign, check_experiments
from alignment_core.prompts import read_template
from alignment_core.redaction import secret_in
from alignment_core.study_config import StudyConfig
from flows.presets import parse_yaml, read_preset

PLAIN = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "should be a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "should be a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "should be true or false"),
    "string_type": "should be text",
    "tuple_type": "should be a list, e.g. [1, 2]",
    "model_type": "should be a mapping of settings",
}
"""Kind of error -> what a setting should be, in words for people who write YAML."""


SHORT_NAMES: dict[str, tuple[str, ...]] = {
    "lr": (
        "sft.optimizer.learning_rate",
        "expert_iteration.sft.optimizer.learning_rate",
        "grpo.optimizer.learning_rate",
        "dpo.optimizer.learning_rate",
    ),
    "steps": ("grpo.n_grpo_steps", "expert_iteration.n_ei_steps"),
    "epochs": ("sft.epochs", "expert_iteration.sft.epochs", "dpo.epochs"),
    "group_size": ("grpo.group_size", "expert_iteration.group_size"),
    "limit": ("evaluation.limit",),
}
"""Short name -> what it may stand for. Alone it means the setting of the flow's own method, else it needs the section
before it: `lr` in the flow grpo, `grpo.lr` anywhere."""


def full_name(name: str, flow: str) -> str:
    """The dotted name that a short one stands for in a flow; any other name as it is.

    Raises ValueError that lists what it may mean if that is not clear.
    """
    section, _, short = name.rpartition(".")
    meant = SHORT_NAMES.get(short, ())
    place = section or flow.replace("-", "_")
    inside = [one for one in meant if one.startswith(f"{place}.")] or ([] if section else list(meant))
    if len(inside) > 1:
        raise ValueError(f"{name} may mean {', '.join(inside)}: give one of these in full")
    return inside[0] if inside else name


def load_config(preset: str, overrides: dict[str, Any] | None = None, flow: str = "study") -> StudyConfig:
    """The preset (a shipped name or a YAML file) with overrides, dotted or nested, merged in and validated.

    flow: whose settings short names (`SHORT_NAMES`) mean. Raises ValueError that names the wrong key, offers the
    nearest right one, and says where it stands.
    """
    settings = read_preset(preset)
    for key, value in (overrides or {}).items():
        assign(settings, full_name(key, flow), value)
    if place := secret_in(settings):
        raise ValueError(
            f"preset {preset!r}: {place} holds a password or another secret, and settings are written to manifests, "
            "logs and MLflow: take it out, and give credentials in the environment (docs/operations.md)"
        )
    try:
        config = StudyConfig.model_validate(settings)
        check_experiments(config)
    except ValidationError as error:
        lines = dict.fromkeys(_explain(entry) for entry in _one_per_place(error.errors()))
        places = [f"preset {preset!r}", *getattr(error, "__notes__", [])]
        raise ValueError(f"{', '.join(places)}: {'; '.join(lines)}") from error
    for template in (config.prompt, config.plain_prompt):
        if template is not None:
            read_template(template)
    return config


def parse_override(text: str) -> tuple[str, Any]:
    """`grpo.optimizer.learning_rate=2e-5` as key and YAML value."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"--set {text!r} is not key=value, e.g. --set grpo.n_grpo_steps=50")
    parsed = parse_yaml(value, f"--set {text!r}")
    quoted = value.lstrip().startswith(("'", '"'))
    return key, _number(parsed) if isinstance(parsed, str) and not quoted else parsed


def parse_hours(text: str) -> float:
    """`4h`, `1.5h` or `30m` in hours; ValueError for anything else."""
    units = {"h": 1.0, "m": 1 / 60}
    try:
        hours = float(text[:-1]) * units[text[-1:]]
    except (KeyError, ValueError):
        hours = 0.0
    if not 0 < hours < float("inf"):
        raise ValueError(f"--budget {text!r} is no time: give hours or minutes, e.g. 4h or 30m")
    return hours


def _number(text: str) -> float | str:
    """YAML 1.1 reads 2e-5 as text; people mean the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _one_per_place(entries: Iterable[Any]) -> list[Any]:
    """Of a setting that may be one of several kinds, what it might be in one entry."""
    by_place: dict[tuple[Any, ...], list[Any]] = {}
    for entry in entries:
        by_place.setdefault(_place(entry), []).append(entry)
    merged = []
    for alike in by_place.values():
        said = dict.fromkeys(PLAIN.get(entry["type"], entry["msg"]).removeprefix("Input ") for entry in alike)
        merged.append({**alike[0], "msg": " or ".join(said)})
    return merged


def _place(entry: Any) -> tuple[Any, ...]:
    """Where an error stands, as a person would write it: without pydantic's names for kinds, `literal['full']`."""
    *parts, last = entry["loc"] or [""]
    wrong_key = entry["type"] == "extra_forbidden"
    return tuple(part for part in parts if _is_own(part)) + ((last,) if wrong_key or _is_own(last) else ())


def _is_own(part: int | str) -> bool:
    return isinstance(part, int) or part.isidentifier()


def _explain(entry: Any) -> str:
    path = _place(entry)
    where = ".".join(str(part) for part in path) or "the study"
    if entry["type"] == "extra_forbidden":
        return f"{where}: no such setting{_suggestion(path)}"
    text = entry["msg"].removeprefix("Value error, ")
    if entry["type"] == "value_error":
        return text if text.startswith(where) else f"{where}: {text}"
    if entry["type"] == "missing":
        return f"{where} is missing: give it"
    return f"{where} {text}, not {_brief(entry['input'])}"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _suggestion(path: tuple[Any, ...]) -> str:
    """The setting that was probably meant: a near name beside it, or the same name elsewhere."""
    name = str(path[-1])
    beside = {one.lower(): one for one in _fields(list(path[:-1]))}
    near = difflib.get_close_matches(name.lower(), beside, 1, 0.6)
    prefix = "".join(f"{part}." for part in path[:-1])
    meant = [prefix + beside[near[0]]] if near else _named(name, prefix)[:3]
    return f"; did you mean {' or '.join(repr(one) for one in meant)}?" if meant else ""


def _named(name: str, section: str) -> list[str]:
    """Dotted names of every setting called `name`: those of a section first, then the shallow ones."""
    found = [one for one in _all_names(StudyConfig) if one.rpartition(".")[2] == name]
    return sorted(found, key=lambda one: (not one.startswith(section), one.count(".")))


def _all_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        inner = _section(field.annotation)
        if inner is not None:
            yield from _all_names(inner, f"{prefix}{name}.")


def _fields(path: list[Any]) -> list[str]:
    """Field names of the settings class at a path."""
    model: type[BaseModel] | None = StudyConfig
    for name in (part for part in path if isinstance(part, str)):
        field = model.model_fields.get(name) if model is not None else None
        model = _section(field.annotation) if field is not None else None
    return list(model.model_fields) if model is not None else []


def _section(annotation: Any) -> type[BaseModel] | None:
    """The settings class in an annotation such as `GRPOConfig | None`."""
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)
