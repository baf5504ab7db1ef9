"""From a preset's name to its raw settings: a shipped scale, a shipped study at a scale, or a YAML file of one's own.

SCALE          flows/presets/SCALE.yaml: model, data, settings, and the experiments it runs by default
SCALE/STUDY    the same with the experiments of flows/studies/STUDY.yaml instead
FILE.yaml      a whole study, or `extends: SCALE` (or SCALE/STUDY) and what differs from it
"""

import difflib
from pathlib import Path
from typing import Any

import yaml

from alignment_core.experiments import assign

SCALES = Path(__file__).parent / "presets"
STUDIES = Path(__file__).parent / "studies"
OWN_TO_A_STUDY = ("question", "description", "experiments")
"""What a study file replaces; everything else in it goes over the scale's settings, one by one."""


def scale_names() -> list[str]:
    """Names of the shipped scales."""
    return sorted(path.stem for path in SCALES.glob("*.yaml"))


def study_names() -> list[str]:
    """Names of the shipped studies, each of which runs at every scale."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def preset_names() -> list[str]:
    """Every shipped preset: the scales, then every study at every scale."""
    return scale_names() + [f"{scale}/{study}" for scale in scale_names() for study in study_names()]


def study_questions() -> dict[str, str]:
    """What each shipped study asks, by name."""
    return {name: str(read_mapping(STUDIES / f"{name}.yaml")["question"]) for name in study_names()}


def read_preset(preset: str) -> dict[str, Any]:
    """Settings of a preset as they stand in its files, merged and not yet validated.

    Raises ValueError for a name that is none, with the nearest one, or a file that is no YAML mapping.
    """
    scale, _, study = preset.partition("/")
    if scale in scale_names() and (not study or study in study_names()):
        settings = read_mapping(SCALES / f"{scale}.yaml")
        return at_scale(settings, scale, study) if study else settings
    path = Path(preset)
    if not path.is_file():
        raise ValueError(_unknown(preset))
    own = read_mapping(path)
    base = own.pop("extends", None)
    if base is None:
        return own
    if str(base) not in preset_names():
        raise ValueError(f"preset {path}: it extends {base!r}, which is not shipped: {_shipped()}")
    settings = read_preset(str(base))
    overlay(settings, own)
    return settings


def at_scale(settings: dict[str, Any], scale: str, study: str) -> dict[str, Any]:
    """A scale's settings under those of a study, and under what the study has for this scale alone."""
    asked = read_mapping(STUDIES / f"{study}.yaml")
    scales = asked.pop("scales", {})
    overlay(settings, {"description": "", **asked})
    overlay(settings, scales.get(scale, {}))
    settings["name"] = f"{study}-{scale}"
    return settings


def overlay(settings: dict[str, Any], over: dict[str, Any]) -> None:
    """Put settings over others, dotted or nested; experiments are replaced as a whole."""
    for name, value in over.items():
        if name in OWN_TO_A_STUDY:
            settings[name] = value
        else:
            assign(settings, name, value)


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; ValueError otherwise."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"preset {path} is not UTF-8 text: give a YAML file") from error
    settings = parse_yaml(text, f"preset {path}")
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is not a YAML mapping of study settings")
    return settings


def parse_yaml(text: str, where: str) -> Any:
    """A YAML value; ValueError that says where it stands if it is none."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {error}") from error


def _unknown(preset: str) -> str:
    if Path(preset).suffix in {".yaml", ".yml"} or Path(preset).is_dir():
        return f"no preset file {preset}: give an existing YAML file, or one of {_shipped()}"
    near = difflib.get_close_matches(preset, preset_names(), 1, 0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"no preset {preset!r}: {hint}Shipped: {_shipped()}; or give a YAML file"


def _shipped() -> str:
    return f"{', '.join(scale_names())}, and SCALE/STUDY ('alignflow studies' lists the studies)"
