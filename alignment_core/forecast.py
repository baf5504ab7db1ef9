"""How long a planned stage may take: as long as its like took in this store, else by the arithmetic of one GPU.

The arithmetic is for a transformer of N parameters on one GPU that reaches FLOPS in training (6 N FLOP a token, three
times a forward pass) and DECODE_STEP seconds per token of a batch that is sampled together. It stands in for a
measurement until there is one, and only for models that a GPU is for.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any, Literal

from alignment_core.manifest import Manifest
from alignment_core.records import Record

FLOPS = 0.4 * 990e12
"""40 % of a H100's or H200's bfloat16 rate."""
DECODE_STEP = 6e-3
"""Seconds for one token of every sequence in a batch, by CUDA graphs."""
PROMPT_TOKENS, RESPONSE_TOKENS = 150, 400
"""Mean lengths of reasoning on GSM8K and MATH."""
PROBLEMS: Mapping[str, int] = {"train": 7_500, "dev": 500, "test": 5_000}
"""Taken for a split whose size nobody knows yet: MATH's."""
GPU_PARAMETERS = 50_000_000
"""Smaller models are for tests on a CPU, and no arithmetic of a GPU is about them."""

Source = Literal["measured", "arithmetic"]


class Forecast(Record):
    """Seconds that a stage may take, and where that comes from."""

    seconds: float
    source: Source


def forecast(
    stage: str,
    settings: Mapping[str, Any],
    parameters: int | None,
    alike: Manifest | None,
    alike_parameters: int | None,
) -> Forecast | None:
    """The forecast of one stage; None if nothing is known.

    alike: the newest artifact of such a stage here; it counts if its model was as large.
    """
    if alike is not None and alike_parameters == parameters:
        before, now = work(stage, alike.settings), work(stage, settings)
        return Forecast(seconds=alike.producer.seconds * now / before, source="measured")
    if parameters is None or parameters < GPU_PARAMETERS:
        return None
    seconds = _arithmetic(stage, settings, parameters)
    return None if seconds is None else Forecast(seconds=seconds, source="arithmetic")


def work(stage: str, settings: Mapping[str, Any]) -> float:
    """How much a stage has to do, in a unit of its own kind; 1 where all stages of a kind do alike."""
    if stage == "sample":
        return float(_sampled(settings))
    if stage == "grpo":
        grpo = settings["grpo"]
        return float(grpo["n_grpo_steps"] * grpo["rollout_batch_size"])
    if stage == "sft":
        return float(settings["sft"]["epochs"] * (settings["size"] or PROBLEMS["train"]))
    return 1.0


def _sampled(settings: Mapping[str, Any]) -> int:
    problems: int = settings["limit"] or PROBLEMS[settings["split"]]
    return problems * int(settings["samples_per_problem"])


def _arithmetic(stage: str, settings: Mapping[str, Any], parameters: int) -> float | None:
    tokens = PROMPT_TOKENS + RESPONSE_TOKENS
    if stage == "sample":
        return _decoding(_sampled(settings), settings["sampling"])
    if stage == "sft":
        return 6 * parameters * tokens * work(stage, settings) / FLOPS
    if stage == "grpo":
        grpo = settings["grpo"]
        trained = 6 * parameters * tokens * grpo["epochs_per_rollout_batch"] * work(stage, settings) / FLOPS
        steps: int = grpo["n_grpo_steps"]
        budget = grpo["time_budget_hours"]
        seconds = trained + steps * _decoding(grpo["rollout_batch_size"], settings["sampling"])
        return seconds if budget is None else min(seconds, 3600 * budget)
    return None


def _decoding(sequences: int, sampling: Mapping[str, Any]) -> float:
    """Seconds to sample; a batch takes as long as its longest response, taken to be the longest allowed."""
    return float(ceil(sequences / sampling["batch_size"]) * sampling["max_tokens"] * DECODE_STEP)
