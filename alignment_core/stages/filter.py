"""Stage `filter`: the traces whose answer the grader accepts."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from alignment_core.records import GradedResponse, Problem, read_jsonl, write_jsonl
from alignment_core.rewards import grade_batch
from alignment_core.runs import RunContext
from alignment_core.stage_config import FilterStage

CONFIG = FilterStage
EXAMPLES = 5


def run(config: FilterStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write the kept traces.jsonl and summary.json: sizes, reasons, a few examples of each reason."""
    traces = [problem for problem in read_jsonl(inputs["problems"] / "traces.jsonl", Problem) if problem.trace]
    if not traces:
        raise ValueError("there are no traces to filter: give data.traces, or problems with solutions")
    grades = grade_batch([t.trace or "" for t in traces], [t.ground_truth for t in traces], config.reward, workers=1)
    reasons = [reason(grade) for grade in grades]
    kept = [trace for trace, why in zip(traces, reasons, strict=True) if why == "right"]
    if not kept:
        raise ValueError(f"none of {len(traces)} traces has an answer the grader accepts: {dict(Counter(reasons))}")
    examples: dict[str, list[dict[str, str]]] = {}
    for trace, why in zip(traces, reasons, strict=True):
        shown = examples.setdefault(why, [])
        if len(shown) < EXAMPLES:
            shown.append({"id": trace.id, "truth": trace.ground_truth, "trace": (trace.trace or "")[-400:]})
    counts = dict(sorted(Counter(reasons).items()))
    summary = {"traces": len(traces), "kept": len(kept), "reasons": counts, "examples": examples}
    write_jsonl(output / "traces.jsonl", kept)
    (output / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    run.emit(0, {"filter/traces": len(traces), "filter/kept": len(kept)})


def reason(grade: GradedResponse) -> str:
    """`right`, `wrong`, `unformatted`, or the grader's own status."""
    if grade.status != "ok":
        return grade.status
    if grade.reward == 1:
        return "right"
    return "wrong" if grade.format_reward == 1 else "unformatted"
