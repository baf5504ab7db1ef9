"""Stage `analyze`: intervals, paired tests and the split of each gain, over the study's evaluations."""

import json
from collections.abc import Mapping
from pathlib import Path

from alignment_core.analysis import analyze
from alignment_core.evaluation import mean_verdict
from alignment_core.records import EvalReport
from alignment_core.runs import RunContext
from alignment_core.stage_config import AnalyzeStage

CONFIG = AnalyzeStage


def run(config: AnalyzeStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write analysis.json."""
    names = [comparison.name for comparison in config.evaluations]
    reports = {name: read_report(inputs[name]) for name in names}
    outcomes = {name: read_outcomes(inputs[name]) for name in names}
    analysis = analyze(config.evaluations, reports, outcomes, contrasts=config.contrasts)
    (output / "analysis.json").write_text(analysis.model_dump_json(indent=1), encoding="utf-8")
    made = len(analysis.comparisons) + len(analysis.setting_comparisons)
    run.emit(0, {"analyze/evaluations": float(len(names)), "analyze/comparisons": float(made)})


def read_report(graded: Path) -> EvalReport:
    """The numbers of a grade artifact."""
    return EvalReport.model_validate_json((graded / "summary.json").read_bytes())


def read_outcomes(graded: Path) -> dict[str, tuple[float, float]]:
    """(formatted, correct) shares of each problem's samples."""
    verdicts: dict[str, list[tuple[bool, bool]]] = {}
    with (graded / "results.jsonl").open("r", encoding="utf-8") as file:
        for row in map(json.loads, file):
            verdicts.setdefault(row["id"], []).append((row["format_reward"] > 0, row["answer_reward"] > 0))
    return {problem_id: mean_verdict(samples) for problem_id, samples in verdicts.items()}
