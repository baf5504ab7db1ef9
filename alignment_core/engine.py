"""How a training loop computes: a model made ready, its micro-batches, its scores, its gradients."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.attention import IMPLEMENTATION, is_packed, packed_attention, prepare_attention
from alignment_core.batching import Batch, TokenSequence, collate, plan_batches
from alignment_core.hardware import memory_advice
from alignment_core.logprobs import TokenScores, response_log_probs
from alignment_core.models import ComputeDtype, autocast, device_of, pad_id, set_checkpointing, vocab_limit
from alignment_core.processes import process_count, share_of, sum_gradients
from alignment_core.training_config import EngineConfig

ADVICE = "lower micro_batch_tokens {tokens}, or set recompute_activations"


class Engine:
    """A model made ready for a training loop."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: EngineConfig,
        compute_dtype: ComputeDtype = "float32",
        temperature: float = 1.0,
    ) -> None:
        """Raises ValueError if the tokenizer knows ids that the model has no embedding for."""
        self.model, self.settings, self.compute_dtype, self.temperature = model, settings, compute_dtype, temperature
        self.device = device_of(model)
        check_vocabulary(model, tokenizer)
        self._pad, self._vocab_limit = pad_id(model, tokenizer), vocab_limit(tokenizer)
        self.attention = prepare_attention(model, settings.attention, compute_dtype)
        set_checkpointing(model, settings.recompute_activations)
        if settings.compile:
            compile_layers(model)
        self._advice = ADVICE.format(tokens=settings.micro_batch_tokens)

    def micro_batches(self, sequences: Sequence[TokenSequence], together: int = 1) -> Iterator[tuple[list[int], Batch]]:
        """This process's micro-batches: indices into `sequences`, and their batch on the model's device.

        Every `together` sequences in a row stay in one micro-batch, in their order.
        Raises ValueError for a sequence longer than the model's positions, or an id without an embedding.
        """
        self.check(sequences)
        budget = self.settings.micro_batch_tokens
        if process_count() > 1:  # each has its share of the work, also where one micro-batch would hold all of it
            budget = min(budget, -(-sum(one.length for one in sequences) // process_count()) or 1)
        planned = plan_batches(sequences, budget, is_packed(self.model), together)
        for number in share_of(len(planned)):
            rows = planned[number]
            with memory_advice(self._advice):
                batch = collate([sequences[row] for row in rows], self._pad, self.device)
            yield rows, batch

    def check(self, sequences: Sequence[TokenSequence]) -> None:
        """Raise ValueError for a sequence longer than the model's positions, or an id without an embedding."""
        highest = max((max(one.prompt_ids + one.response_ids, default=0) for one in sequences), default=0)
        embeddings = int(self.model.config.vocab_size)
        if highest >= embeddings:
            raise ValueError(
                f"a sequence holds token {highest}, and the model has embeddings for {embeddings} ids: take the "
                "tokenizer of the model's own folder, or enlarge the model's embeddings"
            )
        positions = getattr(self.model.config, "max_position_embeddings", None)
        longest = max((sequence.length for sequence in sequences), default=0)
        if positions is not None and longest > positions:
            raise ValueError(
                f"a sequence of {longest} tokens exceeds the model's {positions} positions: lower max_length"
            )

    def scores(
        self,
        batch: Batch,
        with_entropy: bool = False,
        expected_gradient: Tensor | None = None,
        model: PreTrainedModel | None = None,
    ) -> TokenScores:
        """`response_log_probs` in the compute type, at the loop's temperature; of a copy of the model where given."""
        with memory_advice(self._advice), autocast(self.device, self.compute_dtype):
            return response_log_probs(
                model or self.model,
                batch,
                self.temperature,
                with_entropy,
                vocab_limit=self._vocab_limit,
                expected_gradient=expected_gradient,
            )

    def backward(self, share: Tensor) -> None:
        """Add a share's gradient to the weights."""
        with memory_advice(self._advice):
            share.backward()

    def sum_gradients(self) -> None:
        """Fill in the gradients of weights that got none, and sum them over all processes."""
        for weight in self.model.parameters():
            # A batch without any advantage has gradient zero, not none: the moments decay as they should.
            if weight.requires_grad and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        sum_gradients(self.model)


def check_vocabulary(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError if the tokenizer's own vocabulary has more ids than the model has embeddings.

    Tokens added to it later, such as padding, may lie beyond, as long as no sequence holds one.
    """
    embeddings = getattr(getattr(model, "config", None), "vocab_size", None)
    if embeddings is not None and tokenizer.vocab_size > embeddings:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids and the model embeddings for {embeddings}: "
            "they do not belong together; take the tokenizer of the model's own folder"
        )


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each decoder layer by itself: the same code for all of them, and for any length. Attention stays out."""
    AttentionInterface.register(IMPLEMENTATION, torch.compiler.disable(packed_attention))
    for layer in getattr(model.base_model, "layers", ()):
        layer.compile(dynamic=True)
