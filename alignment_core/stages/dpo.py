"""Stage `dpo`: one run of direct preference optimization, from a model and a set of preference pairs."""

from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from alignment_core.dpo import TokenPair, encode_pair, train_dpo
from alignment_core.models import load_model, load_tokenizer
from alignment_core.records import PreferencePair, read_jsonl
from alignment_core.runs import RunContext
from alignment_core.stage_config import DPOStage
from alignment_core.stages.artifacts import model_location, publish_model
from alignment_core.stages.splits import read_split
from alignment_core.validation import stage_validator

CONFIG = DPOStage


def run(config: DPOStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write model/, a Hugging Face folder, from inputs `model`, `pairs` (pairs.jsonl) and `problems` (dev split)."""
    source, revision = model_location(inputs["model"])
    tokenizer = load_tokenizer(source, revision)
    pairs = read_pairs(inputs["pairs"], tokenizer, config.sampling.stop)
    model = load_model(source, revision)
    dev = read_split(inputs["problems"], "dev")
    validate = stage_validator(config, config.dpo.validation_problems, dev, tokenizer, run)
    train_dpo(model, tokenizer, pairs, config.dpo, run, config.seed, config.compute_dtype, validate)
    publish_model(model, tokenizer, output)


def read_pairs(folder: Path, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...]) -> list[TokenPair]:
    """Preference pairs of an artifact's `pairs.jsonl`, as `encode_pair` makes them token ids."""
    return [encode_pair(tokenizer, pair, stop) for pair in read_jsonl(folder / "pairs.jsonl", PreferencePair)]
