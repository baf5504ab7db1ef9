"""Tiny models and a byte-level tokenizer, made on the spot: nothing is downloaded."""

from types import SimpleNamespace

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

EOS = "<eos>"


def byte_tokenizer(*extra: str) -> PreTrainedTokenizerFast:
    """One token per byte, an EOS, and `extra` pieces (never produced by encoding; a model may sample them)."""
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for piece in (EOS, *extra):
        vocabulary[piece] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)


def tiny_config(
    tokenizer: PreTrainedTokenizerFast, vocab_size: int | None = None, hidden_size: int = 32
) -> Qwen2Config:
    """Four heads, 2 layers, tied embeddings; `vocab_size` may exceed the tokenizer's."""
    return Qwen2Config(
        vocab_size=vocab_size or len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )


def tiny_model(
    tokenizer: PreTrainedTokenizerFast, seed: int = 0, vocab_size: int | None = None, hidden_size: int = 32
) -> Qwen2ForCausalLM:
    """A random model; the same one for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(tiny_config(tokenizer, vocab_size, hidden_size)).eval()


class ScriptedModel(nn.Module):
    """Says `script[p]` at absolute position p, whatever it is told; the rest is EOS unless `tail` says otherwise."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, start: int, script: list[int], tail: int) -> None:
        super().__init__()
        self.config = tiny_config(tokenizer)
        self.generation_config = SimpleNamespace(eos_token_id=None)
        self.head = nn.Linear(1, len(tokenizer), bias=False)
        self._next = torch.tensor([tail] * (start - 1) + script + [tail] * (128 - start - len(script)))

    def get_output_embeddings(self) -> nn.Linear:
        """Only its size is asked for."""
        return self.head

    def forward(self, position_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        """Logits that leave no doubt about the next token, and a second choice (id 0) where that one is banned."""
        logits = torch.zeros(len(position_ids), 1, self.head.out_features)
        logits[:, 0, 0] = 50.0
        logits.scatter_(2, self._next[position_ids[:, -1:]][:, :, None], 100.0)
        return SimpleNamespace(logits=logits)
