"""Stage `grpo`: one policy-gradient run from a model."""

import time
from collections.abc import Mapping
from pathlib import Path

from alignment_core.models import load_model, load_tokenizer
from alignment_core.policy_gradient import train_grpo
from alignment_core.runs import RunContext
from alignment_core.sampling import make_sampler
from alignment_core.stage_config import EvaluationSize, GRPOStage
from alignment_core.stages.artifacts import model_location, publish_model
from alignment_core.stages.splits import of_subset, read_split
from alignment_core.time_budget import EvaluationAhead
from alignment_core.validation import stage_validator

CONFIG = GRPOStage


def run(config: GRPOStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write model/, a Hugging Face folder; leave the training state after the last step with the run, if asked to."""
    began = time.perf_counter()
    source, revision = model_location(inputs["model"])
    tokenizer = load_tokenizer(source, revision)
    model = load_model(source, revision)
    sampler = make_sampler(model, tokenizer, config.sampling, config.compute_dtype, run.say)
    start_seconds = time.perf_counter() - began
    dev = read_split(inputs["problems"], "dev")
    validate = stage_validator(
        config, config.grpo.validation_problems, dev, tokenizer, run, sampler, config.grpo.rollouts_logged
    )
    train_grpo(
        model,
        tokenizer,
        read_split(inputs["problems"], "train"),
        config.grpo,
        config.sampling,
        config.reward,
        run,
        config.seed,
        config.compute_dtype,
        validate,
        sampler,
        run.state_folder() if config.grpo.keeps_state else None,
        evaluation_ahead(config.ahead, inputs["problems"], start_seconds),
    )
    publish_model(model, tokenizer, output)


def evaluation_ahead(size: EvaluationSize | None, prepared: Path, start_seconds: float) -> EvaluationAhead | None:
    """How many responses the evaluation samples for which room is left, if there is one."""
    if size is None:
        return None
    asked = of_subset(read_split(prepared, size.split), size.subset)[: size.limit]
    return EvaluationAhead(len(asked) * size.samples_per_problem, start_seconds)
