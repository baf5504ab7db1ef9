"""Stage `report`: the study's page and its figures, from the records of the stages it shows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment_core.analysis import Analysis
from alignment_core.events import read_events
from alignment_core.report import ReportData, StageRow, draw_figures, render
from alignment_core.runs import RunContext
from alignment_core.stage_config import AcceptedStage, ReportStage
from alignment_core.store import MANIFEST, Manifest

CONFIG = ReportStage
ROLLOUT_ROWS = 40
"""Rollouts shown per run, spread over its steps."""


def run(config: ReportStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write report.html, self-contained, and figures/*.svg."""
    grades = {comparison.name: inputs[f"grade: {comparison.name}"] for comparison in config.evaluations}
    data = ReportData(
        title=config.title,
        description=config.description,
        analysis=Analysis.model_validate_json((inputs["analysis"] / "analysis.json").read_bytes()),
        leakage=read_json(inputs["prepare"] / "leakage.json"),
        filter_report=read_json(inputs["filter"] / "summary.json") if "filter" in inputs else None,
        curves={name: read_curve(inputs[name]) for name in config.runs},
        rollouts={name: rows for name in config.runs if (rows := read_rollouts(inputs[name]))},
        examples={name: read_json(folder / "examples.json") for name, folder in grades.items()},
        stages=stage_rows([*inputs.values()], config.accepted),
        settings=config.settings,
    )
    figures = draw_figures(data)
    (output / "report.html").write_text(render(data, figures), encoding="utf-8")
    (output / "figures").mkdir()
    for name, svg in figures.files().items():
        (output / "figures" / name).write_text(svg, encoding="utf-8")
    run.emit(0, {"report/bytes": float((output / "report.html").stat().st_size)})


def read_json(path: Path) -> Any:
    """A JSON file of another stage."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_curve(artifact: Path) -> list[dict[str, Any]]:
    """The points of a training run's record."""
    return [{"step": event.step, "metrics": event.metrics} for event in read_events(artifact) if event.kind == "point"]


def read_rollouts(artifact: Path) -> list[dict[str, Any]]:
    """Rollouts of a policy-gradient run, spread over its steps."""
    rows = [
        {"step": event.step, **row}
        for event in read_events(artifact)
        if event.kind == "rows" and event.name == "rollouts"
        for row in event.rows
    ]
    stride = max(1, len(rows) // ROLLOUT_ROWS)
    return rows[::stride][:ROLLOUT_ROWS]


def stage_rows(artifacts: Sequence[Path], accepted: Sequence[AcceptedStage]) -> list[StageRow]:
    """A row per input, those of older code marked, and one per other stage of the study that is of older code."""
    reasons = {one.key: one.reason for one in accepted}
    rows = [stage_row(folder) for folder in artifacts]
    shown = [row.model_copy(update={"accepted": reasons.get(row.key, "")}) for row in rows]
    others = [one for one in accepted if one.key not in {row.key for row in rows}]
    return shown + [
        StageRow(label=one.label, stage=one.stage, key=one.key, seconds=one.seconds, accepted=one.reason)
        for one in others
    ]


def stage_row(artifact: Path) -> StageRow:
    """Label, kind, key and cost of an input, from its manifest."""
    manifest = Manifest.model_validate_json((artifact / MANIFEST).read_bytes())
    return StageRow(
        label=manifest.label, stage=manifest.stage, key=manifest.key, seconds=round(manifest.producer.seconds, 1)
    )
