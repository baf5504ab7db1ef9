"""What a model wrote, for the page: the rows of the sample browser as JSON, and a few rollouts of each run as HTML.

Model text is hostile input. It enters the page as JSON in which no character can end a script element, and the page's
script writes it as text, never as markup; what nobody could see is shown as a code (`report_text.visible`).
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment_core.report_data import ReportData, Row
from alignment_core.report_text import visible
from alignment_core.run_curves import is_number

ROOM = 1_200_000
"""Bytes of samples that a page holds as data; what is beyond it is thinned, run by run."""
SHOWN_ROLLOUTS = 8
"""Rollouts of a run that stand in the page itself, spread evenly over training; fewer where there are many runs."""
SHOWN_IN_ALL = 160
"""Those of all runs together, two of each at least."""
_FACTS = 160
"""About the bytes of a row beside its prompt and response."""
COLUMNS = ("kind", "run", "step", "reward", "problem", "prompt", "response", "truth", "extracted", "note")
"""Fields of a browser row; `prompt` is a place in the list of prompts, which repeat."""


def browser(data: ReportData) -> dict[str, Any]:
    """Columns, prompts and rows of the sample browser; `of` counts the samples there were."""
    tables = list(_tables(data))
    room = ROOM // max(1, len(tables))
    prompts: dict[str, int] = {}
    rows: list[list[Any]] = []
    for kind, run, samples in tables:
        shown = [_row(kind, run, sample) for sample in fitting(samples, room)]
        for row in shown:
            row["prompt"] = prompts.setdefault(row["prompt"], len(prompts))
            rows.append([row[column] for column in COLUMNS])
    return {
        "columns": list(COLUMNS),
        "prompts": list(prompts),
        "rows": rows,
        "of": sum(len(samples) for _, _, samples in tables),
    }


def embedded(value: object) -> str:
    """JSON that may stand in a script element: ASCII, and no character that could end it or begin a comment."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def spread(rows: Sequence[Row], most: int) -> list[Row]:
    """At most `most` rows in order, evenly spread, first and last included."""
    if len(rows) <= most:
        return list(rows)
    if most <= 1:
        return list(rows[:most])
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]


def fitting(rows: Sequence[Row], room: int) -> list[Row]:
    """Rows spread over all of them that take at most about `room` bytes as data; one at least."""
    prompts = {str(row.get("prompt", "")) for row in rows}
    size = sum(_FACTS + _bytes(row.get("response", "")) for row in rows) + sum(map(_bytes, prompts))
    most = len(rows) if size <= room else math.floor(len(rows) * room / size)
    return spread(rows, max(1, most))


def _bytes(text: object) -> int:
    """Bytes of a text as data: a character beyond ASCII takes six or twelve."""
    return len(embedded(visible(text)))


def shown_rollouts(data: ReportData) -> dict[str, list[Row]]:
    """The rollouts of each run that stand in the page itself."""
    runs = {run: rows for run, rows in data.rollouts.items() if rows}
    most = max(2, min(SHOWN_ROLLOUTS, SHOWN_IN_ALL // max(1, len(runs))))
    return {run: spread(rows, most) for run, rows in runs.items()}


def _tables(data: ReportData) -> Iterator[tuple[str, str, Sequence[Row]]]:
    """(kind, run, rows) in the order in which the browser lists them."""
    kinds: tuple[tuple[str, Mapping[str, Sequence[Row]]], ...] = (
        ("rollout", data.rollouts),
        ("validation", data.validations),
        ("failed", data.examples),
        ("solved", data.solved),
    )
    for kind, tables in kinds:
        for run, rows in tables.items():
            if rows:
                yield kind, run, rows


def _row(kind: str, run: str, sample: Row) -> Row:
    """One sample under the browser's names; every text visible, every number finite or none."""
    rewarded = sample.get("reward", {"failed": 0.0, "solved": 1.0}.get(kind))
    step = sample.get("step")
    told = {
        "format": sample.get("format_reward"),
        "answer": sample.get("answer_reward"),
        "tokens": sample.get("length", sample.get("tokens")),
        "ended by": sample.get("finish_reason"),
        "entropy": sample.get("mean_entropy"),
        "reason": sample.get("reason"),
        "blame": sample.get("blame"),
    }
    return {
        "kind": kind,
        "run": visible(run),
        "step": step if isinstance(step, int) else None,
        "reward": rewarded if is_number(rewarded) else None,
        "problem": visible(sample.get("problem_id", "")),
        "prompt": visible(sample.get("prompt", sample.get("question", ""))),
        "response": visible(sample.get("response", "")),
        "truth": visible(sample.get("ground_truth", sample.get("truth", ""))),
        "extracted": visible(sample["extracted"]) if sample.get("extracted") is not None else "",
        "note": ", ".join(f"{name} {_told(value)}" for name, value in told.items() if value is not None),
    }


def _told(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else visible(value).replace("_", " ")
