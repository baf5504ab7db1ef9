"""Stage `report`: the study's page and its figures, from the records of the stages it shows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from alignment_core.analysis import ROUND, Analysis
from alignment_core.choosing import Choice
from alignment_core.comparability import Benchmark, PublishedNumber, Terms, beside_published, evaluation_set
from alignment_core.report import draw_figures, render
from alignment_core.report_data import AtKRow, Interval, PublishedRow, ReportData, SettingVerdict
from alignment_core.report_inputs import (
    Lineage,
    owners,
    read_curve,
    read_json,
    read_prompts,
    read_samples,
    read_sizes,
    read_solved,
    read_versions,
    stage_rows,
)
from alignment_core.runs import RunContext
from alignment_core.stage_config import Comparison, ReportStage

CONFIG = ReportStage
CHOICE = "choice: "
"""How the name of an input begins that holds the choice of an experiment."""


def run(config: ReportStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write report.html, self-contained, and figures/*.svg."""
    data = collect(config, inputs)
    figures = draw_figures(data)
    (output / "report.html").write_text(render(data, figures), encoding="utf-8")
    (output / "figures").mkdir()
    for name, svg in figures.files().items():
        (output / "figures" / name).write_text(svg, encoding="utf-8")
    run.emit(0, {"report/bytes": float((output / "report.html").stat().st_size)})


def collect(config: ReportStage, inputs: Mapping[str, Path]) -> ReportData:
    """Everything the page shows, from the inputs and the stages that they stand on."""
    grades = {comparison.name: inputs[f"grade: {comparison.name}"] for comparison in config.evaluations}
    choices = {name.removeprefix(CHOICE): folder for name, folder in inputs.items() if name.startswith(CHOICE)}
    lineage = Lineage({"prepare": inputs["prepare"], **inputs})
    analysis = read_json(inputs["analysis"] / "analysis.json")
    return ReportData(
        title=config.title,
        question=config.question,
        description=config.description,
        analysis=Analysis.model_validate(analysis),
        evaluations=list(config.evaluations),
        experiments=list(config.experiments),
        failures=config.failures,
        choices={name: Choice.model_validate(read_json(path / "choice.json")) for name, path in choices.items()},
        intervals=_intervals(analysis),
        setting_comparisons=_setting_comparisons(analysis),
        at_k=_at_k(analysis),
        leakage=read_json(inputs["prepare"] / "leakage.json"),
        filter_report=read_json(inputs["filter"] / "summary.json") if "filter" in inputs else None,
        curves={name: read_curve(inputs[name]) for name in config.runs},
        rollouts={name: read_samples(inputs[name], "rollouts") for name in config.runs},
        validations={name: read_samples(inputs[name], "validation") for name in config.runs},
        examples={name: read_json(folder / "examples.json") for name, folder in grades.items()},
        solved={name: read_solved(folder) for name, folder in grades.items()},
        stages=_stages(config, lineage, grades, choices),
        stands_on=_stands_on(config, lineage, {**{name: inputs[name] for name in config.runs}, **grades}),
        prompts=read_prompts(lineage, config.prompt),
        sizes=read_sizes(inputs["prepare"]),
        versions=read_versions(lineage, config.code),
        settings=config.settings,
        command=config.command,
        published=[row for one in config.evaluations for row in published_rows(one, grades[one.name], config)],
    )


def published_rows(evaluation: Comparison, graded: Path, config: ReportStage) -> list[PublishedRow]:
    """Published numbers of the same kind beside one evaluation, where any were published on such problems.

    A round of Expert Iteration on the way is no result of the method, so nothing stands beside it.
    """
    told, kind = graded / "terms.json", config.settings.get("data.kind")
    if not told.is_file() or ROUND.search(evaluation.name):
        return []
    terms = Terms.model_validate_json(told.read_bytes())
    if evaluation_set(terms) is None and kind not in get_args(Benchmark):
        return []
    return [
        PublishedRow(
            evaluation=evaluation.name,
            comparable=beside.comparable,
            differs=beside.differs,
            note="; ".join(filter(None, [beside.published.note, _precision(beside.published)])),
            **beside.published.model_dump(include={"source", "method", "accuracy", "evaluation_set", "model"}),
        )
        for beside in beside_published(
            terms, config.settings.get("model.source"), method=evaluation.method, benchmark=kind
        )
    ]


def _precision(number: PublishedNumber) -> str:
    """How a number was read, where it was not told as such."""
    return "" if number.precision == "reported" else number.precision


def _stages(
    config: ReportStage, lineage: Lineage, grades: Mapping[str, Path], choices: Mapping[str, Path]
) -> list[Any]:
    """A row per stage in the lineage, in the order in which they were computed, with the experiment that needed it."""
    members = [
        (
            outline.name,
            [
                *(grades[one.name].name for one in config.evaluations if one.experiment == outline.name),
                *([choices[outline.name].name] if outline.name in choices else []),
            ],
        )
        for outline in config.experiments
    ]
    baselines = [grades[one.name].name for one in config.evaluations if one.experiment is None]
    owner = owners(lineage, members, baselines)
    rows = stage_rows([lineage.folders[key] for key in lineage.manifests], config.accepted)
    owned = [row.model_copy(update={"owner": owner.get(row.key, "")}) for row in rows]
    return sorted(owned, key=lambda row: (row.started or 0.0, row.label, row.key))


def _stands_on(config: ReportStage, lineage: Lineage, folders: Mapping[str, Path]) -> dict[str, Any]:
    return {name: lineage.links(folder.name) for name, folder in folders.items()}


# An analysis of an older version has none of what follows.


def _intervals(analysis: Mapping[str, Any]) -> dict[str, Interval]:
    return {
        group["group"]: Interval(low=group["accuracy_low"], high=group["accuracy_high"], note=group.get("note", ""))
        for group in analysis["groups"]
        if group.get("accuracy_low") is not None
    }


def _setting_comparisons(analysis: Mapping[str, Any]) -> list[SettingVerdict]:
    names = SettingVerdict.model_fields
    return [
        SettingVerdict.model_validate({name: value for name, value in one.items() if name in names})
        for one in analysis.get("setting_comparisons", [])
    ]


def _at_k(analysis: Mapping[str, Any]) -> list[AtKRow]:
    return [
        AtKRow(evaluation=row["name"], kind=kind, **one)
        for row in analysis["evaluations"]
        for kind in ("pass", "maj")
        for one in row["report"].get(f"{kind}_at_k", [])
    ]
