"""What a page is made of, read from artifacts: their lineage, and the records of the stages in it.

The stages behind a number are found through the manifests: a grade names its sample, the sample its model and problems,
the model what it was trained on. A parent that is no longer in the store is left out.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alignment_core.events import Event, read_events
from alignment_core.manifest import MANIFEST, Manifest
from alignment_core.report_data import KeyLink, Prompt, Row, StageRow
from alignment_core.run_curves import is_number
from alignment_core.stage_config import AcceptedStage

ROLLOUT_ROWS = 40
"""Rollouts kept per run, spread over its steps."""
SOLVED_ROWS = 6
"""Right responses kept per evaluation, the first ones."""
RATED = ("threads", "accelerator")
"""What a manifest's annotations may say of the machine."""


class Lineage:
    """The artifacts that some inputs stand on, themselves included."""

    def __init__(self, inputs: Mapping[str, Path]) -> None:
        self.manifests: dict[str, Manifest] = {}
        """By key, those nearest to the inputs first."""
        self.folders: dict[str, Path] = {}
        pending = list(inputs.values())
        while pending:
            folder = pending.pop(0)
            manifest = read_manifest(folder)
            if manifest is None or manifest.key in self.manifests:
                continue
            self.manifests[manifest.key], self.folders[manifest.key] = manifest, folder
            store = folder.parents[1]
            pending += [store / parent.stage / parent.key for parent in manifest.parents.values()]

    def behind(self, key: str) -> list[Manifest]:
        """An artifact and all it stands on, the nearest first."""
        found: dict[str, Manifest] = {}
        pending = [key]
        while pending:
            manifest = self.manifests.get(pending.pop(0))
            if manifest is not None and manifest.key not in found:
                found[manifest.key] = manifest
                pending += [parent.key for parent in manifest.parents.values()]
        return list(found.values())

    def links(self, key: str) -> list[KeyLink]:
        """The same as a reader may look them up."""
        return [KeyLink(what=one.label, stage=one.stage, key=one.key) for one in self.behind(key)]


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an artifact; None where there is none to read."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def owners(lineage: Lineage, members: Sequence[tuple[str, Sequence[str]]], shared: Sequence[str]) -> dict[str, str]:
    """Key -> the experiment that first needed it; "" for what the `shared` keys stand on.

    members: (experiment, keys of its grades and choice) in the study's order.
    """
    found = {one.key: "" for key in shared for one in lineage.behind(key)}
    for experiment, keys in members:
        for key in keys:
            for one in lineage.behind(key):
                found.setdefault(one.key, experiment)
    return found


def stage_rows(artifacts: Sequence[Path], accepted: Sequence[AcceptedStage]) -> list[StageRow]:
    """A row per artifact, those of older code marked, and one per other stage of the study that is of older code."""
    reasons = {one.key: one.reason for one in accepted}
    rows = [stage_row(folder) for folder in artifacts]
    shown = [row.model_copy(update={"accepted": reasons.get(row.key, "")}) for row in rows]
    others = [one for one in accepted if one.key not in {row.key for row in rows}]
    return shown + [
        StageRow(label=one.label, stage=one.stage, key=one.key, seconds=one.seconds, accepted=one.reason)
        for one in others
    ]


def stage_row(artifact: Path) -> StageRow:
    """Label, kind, key, origin and cost of an artifact, from its manifest and its record."""
    manifest = Manifest.model_validate_json((artifact / MANIFEST).read_bytes())
    producer = manifest.producer
    trained, sampled = tokens(manifest.stage, artifact)
    return StageRow(
        label=manifest.label,
        stage=manifest.stage,
        key=manifest.key,
        seconds=round(producer.seconds, 1),
        started=producer.started,
        host=producer.host,
        study=producer.annotations.get("study", ""),
        run=producer.annotations.get("run", ""),
        resumed_from=producer.resumed_from_step,
        trained_tokens=trained,
        sampled_tokens=sampled,
    )


def tokens(stage: str, artifact: Path) -> tuple[float | None, float | None]:
    """Response tokens that a stage trained on and sampled, as far as its record tells."""
    trained: list[float] = []
    sampled: list[float] = []
    done = 0
    for event in read_points(artifact):
        metrics = event.metrics
        trained += [metrics[name] for name in ("train/tokens",) if is_number(metrics.get(name))]
        sampled += [metrics[name] for name in ("train/tokens_sampled",) if is_number(metrics.get(name))]
        if stage == "sample" and is_number(metrics.get("sample/mean_length")):
            sampled.append(metrics["sample/mean_length"] * (event.step - done))
            done = event.step
    return (sum(trained) if trained else None), (sum(sampled) if sampled else None)


def read_points(artifact: Path) -> Iterator[Event]:
    """The points of a stage's record; none where it kept no record."""
    try:
        yield from (event for event in read_events(artifact) if event.kind == "point")
    except FileNotFoundError:
        return


def read_curve(artifact: Path) -> list[Row]:
    """The points of a training run's record."""
    return [{"step": event.step, "metrics": event.metrics} for event in read_points(artifact)]


def read_samples(artifact: Path, table: str) -> list[Row]:
    """Rows of one table of a run's record (`rollouts`, `validation`), spread over its steps."""
    rows = [
        {"step": event.step, **row}
        for event in read_events(artifact)
        if event.kind == "rows" and event.name == table
        for row in event.rows
    ]
    stride = max(1, len(rows) // ROLLOUT_ROWS)
    return rows[::stride][:ROLLOUT_ROWS]


def read_solved(graded: Path) -> list[Row]:
    """The first right responses of an evaluation."""
    found: list[Row] = []
    with (graded / "results.jsonl").open("r", encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["answer_reward"] > 0:
                found.append({"problem_id": row["id"], **row})
            if len(found) == SOLVED_ROWS:
                break
    return found


def read_prompts(lineage: Lineage, own: str) -> list[Prompt]:
    """The templates that problems were asked through, each once: those of prepared problems, then those of sampling.

    own: name of the study's template, which the nearest prepared problems have.
    """
    found: dict[str, Prompt] = {}
    for key, manifest in lineage.manifests.items():
        written = lineage.folders[key] / "template.txt"
        if manifest.stage == "prepare" and written.is_file():
            _add_prompt(found, manifest.label, own if not found else "", written.read_text(encoding="utf-8"))
    for manifest in lineage.manifests.values():
        template = manifest.settings.get("template")
        if manifest.stage == "sample" and isinstance(template, str):
            _add_prompt(found, manifest.label, "", template)
    return list(found.values())


def _add_prompt(found: dict[str, Prompt], label: str, name: str, text: str) -> None:
    digest = hashlib.sha256(text.encode()).hexdigest()
    found.setdefault(digest, Prompt(label=label, name=name, text=text, sha256=digest))


def read_sizes(prepared: Path) -> dict[str, int]:
    """Rows of each split, as the prepare stage counted them."""
    points = list(read_points(prepared))
    counts: Mapping[str, float] = points[-1].metrics if points else {}
    return {name.removeprefix("data/"): int(count) for name, count in counts.items() if name.startswith("data/")}


def read_versions(lineage: Lineage, code: Mapping[str, str]) -> dict[str, str]:
    """What the stages were computed with: each library in all its versions, hosts, and what `code` says."""
    found: dict[str, dict[str, None]] = {}
    for manifest in lineage.manifests.values():
        for name, version in manifest.components.versions.items():
            if version != "absent":
                found.setdefault(name, {})[version] = None
        for name in RATED:
            if name in manifest.producer.annotations:
                found.setdefault(name, {})[manifest.producer.annotations[name]] = None
        found.setdefault("host", {})[manifest.producer.host] = None
    told = {name: ", ".join(sorted(versions)) for name, versions in sorted(found.items())}
    return {**dict(code), **told}


def read_json(path: Path) -> Any:
    """A JSON file of another stage."""
    return json.loads(path.read_text(encoding="utf-8"))
