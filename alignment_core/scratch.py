"""A tiny model of its own: byte-level tokenizer and Qwen2-shaped weights, from scratch."""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from alignment_core.config import ScratchModelConfig
from alignment_core.seeding import derive_seed

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-pair tokenizer over at most `vocab_size` entries; digits stay single, any text round-trips.

    All 256 bytes are in the alphabet, so nothing is unknown. `<|endoftext|>` is both EOS and padding. Raises
    ValueError if `vocab_size` has no room for bytes and that token.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise ValueError(f"vocab_size {vocab_size} is too small: {len(alphabet) + 1} hold the bytes and {END_OF_TEXT}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def build_model(config: ScratchModelConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """Freshly initialised float32 model, head tied to the embedding, no dropout; the same for the same seed.

    The global random state of torch is left as it was. Raises ValueError if the heads do not divide.
    """
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    if config.hidden_size % heads or heads % shared:
        raise ValueError(
            f"hidden_size {config.hidden_size} must be a multiple of num_attention_heads {heads}, "
            f"and that of num_key_value_heads {shared}"
        )
    shape = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        max_position_embeddings=config.max_position_embeddings,
        initializer_range=config.initializer_range,
        attention_dropout=0.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        # The CPU generator alone: torch.manual_seed would also reseed GPUs, which fork_rng does not restore here.
        torch.default_generator.manual_seed(derive_seed(seed, "scratch model"))
        return Qwen2ForCausalLM(shape).float()
