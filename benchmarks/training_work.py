"""The work that `benchmarks.training` gives to both engines: a model, a vocabulary of words, sequences of mixed length.

Everything follows from the numbers of a `Work`, so two processes that never meet do the same.
"""

import random
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

END, PAD = 0, 1
"""Ids of the end of a text and of padding; words follow."""


@dataclass(frozen=True)
class Work:
    """One measurement's size."""

    vocab_size: int = 32_768
    hidden_size: int = 256
    layers: int = 4
    problems: int = 8
    """Distinct prompts of an optimizer batch."""
    group_size: int = 8
    """Responses to each; 1 in fine-tuning."""
    longest_prompt: int = 96
    longest_response: int = 192
    rows: int = 8
    """Sequences in a micro-batch of the engine that pads."""
    steps: int = 3
    seed: int = 0

    @property
    def sequences(self) -> int:
        """Sequences of an optimizer batch."""
        return self.problems * self.group_size


def make_tokenizer(work: Work) -> PreTrainedTokenizerFast:
    """One word, w17, per id."""
    vocabulary = {"<end>": END, "<pad>": PAD} | {f"w{i}": i for i in range(2, work.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")


def make_model(work: Work, eos: int | list[int] = END) -> Qwen2ForCausalLM:
    """A random Qwen2-shaped model with a tied head, in float32."""
    shape = Qwen2Config(
        vocab_size=work.vocab_size,
        hidden_size=work.hidden_size,
        intermediate_size=work.hidden_size * 11 // 4,
        num_hidden_layers=work.layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=PAD,
    )
    torch.manual_seed(work.seed)
    return Qwen2ForCausalLM(shape).float()


def make_prompts(work: Work) -> list[list[int]]:
    """Distinct prompts, of a quarter of the longest length up to it."""
    draw = random.Random(work.seed)
    lengths = [draw.randint(max(work.longest_prompt // 4, 1), work.longest_prompt) for _ in range(work.problems)]
    return [[draw.randrange(2, work.vocab_size) for _ in range(length)] for length in lengths]


def make_responses(work: Work, step: int) -> list[list[int]]:
    """One response per sequence, prompt by prompt: lengths as rollouts have them, many short and a few at the limit."""
    draw = random.Random(f"{work.seed}/{step}")
    responses = []
    for _ in range(work.sequences):
        length = max(4, min(work.longest_response, round(draw.gammavariate(2.0, work.longest_response / 6))))
        responses.append([draw.randrange(2, work.vocab_size) for _ in range(length - 1)] + [END])
    return responses


def make_rewards(work: Work) -> list[float]:
    """Zeros and ones, mixed within every group."""
    draw = random.Random(work.seed + 1)
    rewards: list[float] = []
    for _ in range(work.problems):
        right = draw.randint(1, max(work.group_size - 1, 1))
        group = [float(index < right) for index in range(work.group_size)]
        draw.shuffle(group)
        rewards += group
    return rewards
