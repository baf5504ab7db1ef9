"""Stage `pretrain`: a tiny model from scratch, on a corpus in which the strict format is rare."""

import json
from collections.abc import Mapping
from pathlib import Path

from alignment_core.batching import TokenSequence
from alignment_core.corpus import pretraining_documents
from alignment_core.models import save_model
from alignment_core.runs import RunContext
from alignment_core.scratch import build_model, train_tokenizer
from alignment_core.seeding import derive_seed
from alignment_core.sft import train_sft
from alignment_core.stage_config import PretrainStage
from alignment_core.training_config import OptimizerConfig, SFTConfig

CONFIG = PretrainStage


def run(config: PretrainStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write model/, a Hugging Face folder with its tokenizer, and corpus.json: sizes and sample documents."""
    shape = config.model
    documents = pretraining_documents(shape, config.arithmetic, config.template, config.plain_template, config.seed)
    tokenizer = train_tokenizer(documents, shape.vocab_size)
    ids = tokenizer(documents, add_special_tokens=False)["input_ids"]
    eos = tokenizer.eos_token_id
    examples = [TokenSequence([], [*one, eos]) for one in ids]
    run.say(f"{len(documents)} documents, {sum(map(len, ids))} tokens, {len(tokenizer)} entries in the vocabulary")
    model = build_model(shape, tokenizer, derive_seed(config.seed, "weights"))
    train_sft(model, tokenizer, examples, pretraining(config), run, derive_seed(config.seed, "pretrain"))
    save_model(model, tokenizer, output / "model")
    corpus = {"documents": len(documents), "tokens": sum(map(len, ids)), "samples": documents[:8]}
    (output / "corpus.json").write_text(json.dumps(corpus, indent=1), encoding="utf-8")


def pretraining(config: PretrainStage) -> SFTConfig:
    """One epoch of next-token prediction over whole documents, cosine rate."""
    return SFTConfig(
        epochs=1,
        batch_size=config.model.batch_size,
        optimizer=OptimizerConfig(learning_rate=config.model.learning_rate, schedule="cosine", warmup_steps=20),
        validation_problems=0,
    )
