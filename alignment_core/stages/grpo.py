"""Stage `grpo`: one policy-gradient run from a model."""

from collections.abc import Mapping
from pathlib import Path

from alignment_core.models import load_model, load_tokenizer
from alignment_core.policy_gradient import train_grpo
from alignment_core.runs import RunContext
from alignment_core.sampling import make_sampler
from alignment_core.stage_config import GRPOStage
from alignment_core.stages.artifacts import model_location, publish_model
from alignment_core.stages.splits import read_split
from alignment_core.validation import stage_validator

CONFIG = GRPOStage


def run(config: GRPOStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write model/, a Hugging Face folder; leave the training state after the last step with the run, if asked to."""
    source, revision = model_location(inputs["model"])
    tokenizer = load_tokenizer(source, revision)
    model = load_model(source, revision)
    sampler = make_sampler(model, tokenizer, config.sampling, config.compute_dtype, run.say)
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
    )
    publish_model(model, tokenizer, output)
