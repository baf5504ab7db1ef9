"""How long a planned stage may take: as long as its like took in this store, else by the arithmetic of one GPU.

A stage samples responses, those of its validation curve included, and passes over responses in training; each of the
two is scaled by itself. The arithmetic is for a transformer of N parameters on one GPU that reaches FLOPS in training
(6 N FLOP a token, three times a forward pass) and DECODE_STEP seconds per token of a batch that is sampled together. It
stands in for a measurement until there is one, and only for models that a GPU is for.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any, Literal, NamedTuple

from alignment_core.config import DataConfig
from alignment_core.records import Record

FLOPS = 0.4 * 990e12
"""40 % of a H100's or H200's bfloat16 rate."""
DECODE_STEP = 6e-3
"""Seconds for one token of every sequence in a batch, by CUDA graphs."""
PROMPT_TOKENS, RESPONSE_TOKENS = 150, 400
"""Mean lengths of reasoning on GSM8K and MATH."""
PROBLEMS: Mapping[str, int] = {"train": 7_500, "dev": 500, "test": 5_000}
"""Taken where nothing is known of the problems: MATH's."""
PUBLISHED: Mapping[str, tuple[int, int]] = {"gsm8k": (7_473, 1_319)}
"""Rows of train and test as published, by `data.kind`; of other kinds, MATH's stand in."""
GPU_PARAMETERS = 50_000_000
"""Smaller models are for tests on a CPU, and no arithmetic of a GPU is about them."""

Source = Literal["measured", "arithmetic"]


class Forecast(Record):
    """Seconds that a stage may take, and where that comes from."""

    seconds: float
    source: Source


class Work(NamedTuple):
    """How much a stage has to do; nothing of either where all stages of a kind do alike."""

    sampled: int
    """Responses sampled, at the points of the validation curve too."""
    trained: int
    """Passes over a response, forward and backward."""


class Like(NamedTuple):
    """The newest stage of a kind that was computed here."""

    settings: Mapping[str, Any]
    parameters: int | None
    splits: Mapping[str, int]
    """Problems of each split it worked on."""
    seconds: float
    updates: float | None
    """Seconds of them that went into passes and optimizer updates; None where its record does not tell."""


def forecast(
    stage: str, settings: Mapping[str, Any], parameters: int | None, splits: Mapping[str, int], alike: Like | None
) -> Forecast | None:
    """The forecast of one stage; None if nothing is known. `splits` are the sizes of its problems.

    `alike` counts if its model was as large.
    """
    found: Forecast | None = None
    if alike is not None and alike.parameters == parameters:
        found = Forecast(seconds=_measured(alike, work(stage, settings, splits), stage), source="measured")
    elif parameters is not None and parameters >= GPU_PARAMETERS:
        seconds = _arithmetic(stage, settings, parameters, splits)
        found = None if seconds is None else Forecast(seconds=seconds, source="arithmetic")
    budget = settings["grpo"]["time_budget_hours"] if stage == "grpo" else None
    if found is None or budget is None:
        return found
    return found.model_copy(update={"seconds": min(found.seconds, 3600 * budget)})


def work(stage: str, settings: Mapping[str, Any], splits: Mapping[str, int]) -> Work:
    """How much a stage has to do on problems of these split sizes."""
    if stage == "sample":
        return Work(_sampled(settings, splits), 0)
    if stage == "grpo":
        grpo = settings["grpo"]
        rollouts = grpo["n_grpo_steps"] * grpo["rollout_batch_size"]
        points, problems = _validation(stage, settings, splits)
        return Work(rollouts + points * problems, rollouts * grpo["epochs_per_rollout_batch"])
    if stage == "sft":
        points, problems = _validation(stage, settings, splits)
        return Work(points * problems, settings["sft"]["epochs"] * _examples(settings, splits))
    return Work(0, 0)


def split_sizes(settings: Mapping[str, Any]) -> dict[str, int]:
    """Problems of each split by the settings of a study's data, as published where they do not tell."""
    data = DataConfig.model_validate(settings)
    if data.arithmetic is not None:
        train, dev, test = data.arithmetic.train, data.arithmetic.dev, data.arithmetic.test
    elif data.split == "resplit":
        train, dev, test = data.resplit_sizes
    else:
        rows, test = PUBLISHED.get(data.kind, (PROBLEMS["train"], PROBLEMS["test"]))
        if data.kind == "countdown":
            test = data.countdown_size // 4
            rows = data.countdown_size - test
        train, dev = max(rows - data.dev_size, 0), data.dev_size
    return {"train": min(train, data.limit_train or train), "dev": dev, "test": min(test, data.limit_test or test)}


def _measured(alike: Like, now: Work, stage: str) -> float:
    """Seconds by a like stage's: its updates by what is trained, the rest of its time by what is sampled."""
    before = work(stage, alike.settings, alike.splits)
    if alike.updates is None:
        return alike.seconds * _ratio(sum(now), sum(before))
    updates = min(alike.updates, alike.seconds)
    rest = (alike.seconds - updates) * _ratio(now.sampled, before.sampled)
    return updates * _ratio(now.trained, before.trained) + rest


def _ratio(now: int, before: int) -> float:
    """How much longer; what the like stage did none of has no measure, and nothing is added for it."""
    return now / before if before else 1.0


def _sampled(settings: Mapping[str, Any], splits: Mapping[str, int]) -> int:
    problems: int = settings["limit"] or splits[settings["split"]]
    return problems * int(settings["samples_per_problem"])


def _examples(settings: Mapping[str, Any], splits: Mapping[str, int]) -> int:
    return int(settings["size"] or splits["train"])


def _validation(stage: str, settings: Mapping[str, Any], splits: Mapping[str, int]) -> tuple[int, int]:
    """Points of the validation curve (before the first step, every so many, after the last), and problems at each."""
    loop = settings[stage]
    if stage == "grpo":
        steps = loop["n_grpo_steps"]
    else:
        steps = loop["epochs"] * ceil(_examples(settings, splits) / loop["batch_size"])
    return 1 + ceil(steps / loop["validate_every"]), min(loop["validation_problems"], splits["dev"])


def _arithmetic(stage: str, settings: Mapping[str, Any], parameters: int, splits: Mapping[str, int]) -> float | None:
    if stage == "sample":
        return _decoding(_sampled(settings, splits), settings["sampling"])
    if stage not in {"sft", "grpo"}:
        return None
    points, problems = _validation(stage, settings, splits)
    seconds = points * _decoding(problems, settings["sampling"])
    seconds += 6 * parameters * (PROMPT_TOKENS + RESPONSE_TOKENS) * work(stage, settings, splits).trained / FLOPS
    if stage == "grpo":
        grpo = settings["grpo"]
        seconds += grpo["n_grpo_steps"] * _decoding(grpo["rollout_batch_size"], settings["sampling"])
    return seconds


def _decoding(sequences: int, sampling: Mapping[str, Any]) -> float:
    """Seconds to sample; a batch takes as long as its longest response, taken to be the longest allowed."""
    return float(ceil(sequences / sampling["batch_size"]) * sampling["max_tokens"] * DECODE_STEP)
