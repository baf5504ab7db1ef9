"""Stage `prepare`: problem splits with prompts, traces, leakage report, notes on rows that needed care."""

import json
from collections.abc import Mapping
from pathlib import Path

from alignment_core.problems import prepare
from alignment_core.records import write_jsonl
from alignment_core.runs import RunContext
from alignment_core.stage_config import PrepareStage

CONFIG = PrepareStage


def run(config: PrepareStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write {train,dev,test,traces}.jsonl, leakage.json, notes.json and the template used."""
    prepared = prepare(config.data, config.template, config.seed)
    counts = {
        name: float(write_jsonl(output / f"{name}.jsonl", getattr(prepared, name)))
        for name in ("train", "dev", "test", "traces")
    }
    (output / "leakage.json").write_text(json.dumps(prepared.leakage, indent=1), encoding="utf-8")
    (output / "notes.json").write_text(json.dumps(prepared.notes, indent=1), encoding="utf-8")
    (output / "template.txt").write_text(config.template, encoding="utf-8")
    run.emit(0, {f"data/{name}": count for name, count in counts.items()})
    run.say(", ".join(f"{int(count)} {name}" for name, count in counts.items()) + " rows")
    if prepared.notes:
        run.say(f"{len(prepared.notes)} rows needed care; the first: {prepared.notes[0]}; all are in notes.json")
    leaks = {name: found["across"] for name, found in prepared.leakage.items() if isinstance(found, dict)}
    if any(leaks.values()):
        run.say(f"equal questions in different splits, by normalisation: {leaks}; the pairs are in leakage.json")
