"""Stage `sft`: one supervised run, from a model and a set of traces or selected samples."""

from collections.abc import Mapping
from pathlib import Path

from alignment_core.batching import TokenSequence
from alignment_core.models import load_model, load_tokenizer
from alignment_core.random_draws import permutation
from alignment_core.runs import RunContext
from alignment_core.seeding import derive_seed
from alignment_core.sft import train_sft
from alignment_core.stage_config import SFTStage
from alignment_core.stages.artifacts import model_location, publish_model, read_examples
from alignment_core.stages.splits import read_split
from alignment_core.validation import stage_validator

CONFIG = SFTStage


def run(config: SFTStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write model/, a Hugging Face folder."""
    source, revision = model_location(inputs["model"])
    tokenizer = load_tokenizer(source, revision)
    examples = nested_subset(
        read_examples(inputs["examples"], tokenizer, config.sampling.stop), config.size, config.subset_seed
    )
    model = load_model(source, revision)
    dev = read_split(inputs["problems"], "dev")
    validate = stage_validator(config, config.sft.validation_problems, dev, tokenizer, run)
    train_sft(model, tokenizer, examples, config.sft, run, config.seed, config.compute_dtype, validate)
    publish_model(model, tokenizer, output)


def nested_subset(examples: list[TokenSequence], size: int | None, seed: int) -> list[TokenSequence]:
    """The first `size` examples of one seeded shuffle: a smaller subset is contained in every larger one.

    Raises ValueError if there are fewer than `size`.
    """
    if size is not None and size > len(examples):
        raise ValueError(
            f"examples.size asks for {size} examples, and there are {len(examples)}: lower it or use 'full'"
        )
    order = permutation(len(examples), derive_seed(seed, "subset"))
    return [examples[index] for index in order[:size]]
