"""Instruction tuning and preferences on plain text, as the assignment's supplement names them.

Documents are rendered with an instruction template, whose wording the caller may replace, and tokenized; the loops of
the pipeline work on token ids instead (`alignment_core.sft`, `alignment_core.dpo`).
"""

import os
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from alignment_core import losses
from alignment_core.batching import Batch, PackedDataset, TokenSequence, collate, pack_documents
from alignment_core.logprobs import response_log_probs
from alignment_core.records import Record, read_jsonl
from alignment_core.seeding import derive_seed

INSTRUCTION_TEMPLATE = "Carry out the following request.\n\n## Request\n{instruction}\n\n## Reply\n{response}"
"""Default document of instruction tuning and DPO; the published one can be given instead."""


class InstructionExample(Record):
    """One line of an instruction-tuning file; further fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    prompt: str
    response: str


def get_packed_sft_dataset(
    tokenizer: Any,
    dataset_path: str | os.PathLike[str],
    seq_length: int,
    shuffle: bool,
    template: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> PackedDataset:
    """JSONL of {prompt, response} as packed rows of `seq_length` tokens.

    Each example is rendered with `template` (text or file with `{instruction}` and `{response}`) and tokenized with
    the tokenizer's own special tokens; documents are joined by the end-of-text token. `shuffle` reorders the
    documents, by `seed`, before they are packed. Raises ValueError for a bad line or too little text.
    """
    examples = read_jsonl(Path(dataset_path), InstructionExample)
    if shuffle:
        order = torch.randperm(len(examples), generator=_generator(seed, "documents")).tolist()
        examples = [examples[index] for index in order]
    layout = _read_instruction_template(template)
    texts = ["".join(_render_instruction(layout, one.prompt, one.response)) for one in examples]
    documents = [encode_text(tokenizer, text, special_tokens=True) for text in texts]
    return pack_documents(documents, end_of_text_id(tokenizer), seq_length)


def iterate_batches(dataset: Dataset[Any], batch_size: int, shuffle: bool, seed: int = 0) -> DataLoader[Any]:
    """One epoch of batches, the last one possibly smaller; `shuffle` orders the examples by `seed`."""
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, generator=_generator(seed, "batches"))


def compute_per_instance_dpo_loss(
    lm: nn.Module,
    lm_ref: nn.Module,
    tokenizer: Any,
    beta: float,
    prompt: str,
    response_chosen: str,
    response_rejected: str,
    template: str | os.PathLike[str] | None = None,
) -> Tensor:
    """-log sigmoid(beta (d_chosen - d_rejected)), d = log p - log p_ref of response and EOS; a scalar.

    The DPO loss of one pair (arXiv:2305.18290, eq. 7), log-probabilities summed over tokens, in nats.

    Prompt and response are set in `template` (text or file with `{instruction}` and `{response}`). The prompt's own
    log-probability is the same in both pairs and cancels. `lm` and `lm_ref` may sit on different devices; the result
    lies on `lm`'s, and only `lm` gets a gradient.
    """
    layout = _read_instruction_template(template)
    sequences = []
    for response in (response_chosen, response_rejected):
        before, after = _render_instruction(layout, prompt, response)
        response_ids = [*encode_text(tokenizer, after), end_of_text_id(tokenizer)]
        sequences.append(TokenSequence(encode_text(tokenizer, before, special_tokens=True), response_ids))
    batch = collate(sequences, padding_id(tokenizer))
    policy = _sequence_log_probs(lm, batch)
    with torch.no_grad():
        reference = _sequence_log_probs(lm_ref, batch).to(policy.device)
    return losses.dpo_loss(policy[:1], policy[1:], reference[:1], reference[1:], beta).squeeze(0)


def _sequence_log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """(B,) sums of response log-probs, computed where the model is."""
    device = next(model.parameters()).device
    return response_log_probs(model, batch.to(device)).log_probs.sum(-1)


def _read_instruction_template(template: str | os.PathLike[str] | None) -> str:
    """Template text from a text, a file (without its final newline) or the default; checked for its two fields."""
    if template is None:
        return INSTRUCTION_TEMPLATE
    is_text = isinstance(template, str) and "{response}" in template
    text = str(template) if is_text else Path(template).read_text(encoding="utf-8").rstrip("\n")
    if text.count("{instruction}") != 1 or text.count("{response}") != 1:
        raise ValueError("an instruction template holds {instruction} and {response} once each")
    return text


def _render_instruction(template: str, instruction: str, response: str) -> tuple[str, str]:
    """The text up to the response, and the response with what follows it."""
    before, after = template.split("{response}")
    return before.replace("{instruction}", instruction), response + after.replace("{instruction}", instruction)


def encode_text(tokenizer: Any, text: str, special_tokens: bool = False) -> list[int]:
    """Ids of a text, by default without the special tokens a tokenizer would add."""
    return list(tokenizer(text, add_special_tokens=special_tokens)["input_ids"])


def padding_id(tokenizer: Any) -> int:
    """Padding id, or the end-of-text id in its place: masks come from lengths, so that any id will do."""
    return end_of_text_id(tokenizer) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def end_of_text_id(tokenizer: Any) -> int:
    """The EOS id. Raises ValueError if the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token: set tokenizer.eos_token")
    return int(tokenizer.eos_token_id)


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, purpose))
