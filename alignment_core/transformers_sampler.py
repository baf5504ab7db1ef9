"""Sampling with a plain transformers model: batched decoding with a key/value cache.

Rows are sorted by prompt length, so a batch is padded little; equal prompts share their prefill; finished rows
leave the batch. On a GPU, models of the Llama family are handed to `graph_decoding`, which is several times faster.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.config import SamplingConfig
from alignment_core.decoding import Draw, StopRules, draw_tokens
from alignment_core.graph_decoding import GraphDecoder, resolve_decoding
from alignment_core.hardware import memory_advice
from alignment_core.models import ComputeDtype, device_of, eos_ids, pad_id, vocab_limit
from alignment_core.random_draws import uniforms
from alignment_core.records import Completion
from alignment_core.sampling import Finished, Progress, PromptRequest, check_requests
from alignment_core.transcripts import Transcripts

COMPACT_BELOW = 0.75
"""Finished rows are dropped once the share of rows alive falls below this; dropping copies the cache."""

DRAWS_AHEAD = 64
"""Positions whose random draws are made at once."""


class TransformersSampler:
    """A `Sampler` over a transformers model in this process."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, compute_dtype: ComputeDtype = "float32"
    ) -> None:
        self._tokenizer = tokenizer
        self._eos = eos_ids(model, tokenizer)
        self._model = model
        self._copies = compute_dtype == "bfloat16"
        if self._copies:
            # A narrow copy halves what every decoding step reads; casting the masters each step would double it.
            # Weights only: rotary frequencies are a buffer, and rounded they turn far positions by radians.
            self._model = copy.deepcopy(model)
            for weight in self._model.parameters():
                weight.data = weight.data.bfloat16()
        self._vocab_size = min(vocab_limit(tokenizer), model.get_output_embeddings().weight.shape[0])
        self._rules: StopRules | None = None
        self._decoder: GraphDecoder | None = None

    def update_weights(self, model: PreTrainedModel) -> None:
        """Sample from `model`'s present weights from now on. In float32 the model itself is used, nothing is copied."""
        if not self._copies:
            self._model = model
            return
        with torch.no_grad():
            for ours, theirs in zip(self._model.parameters(), model.parameters(), strict=True):
                ours.copy_(theirs)

    def sample(
        self,
        requests: Sequence[PromptRequest],
        config: SamplingConfig,
        on_progress: Progress | None = None,
        on_finished: Finished | None = None,
    ) -> list[Completion]:
        """One completion per request, in their order; each text is handed to `on_finished` once, as it ends.

        Raises ValueError for an empty prompt, or if prompt and response would not fit the model's positions.
        """
        check_requests(requests, config, getattr(self._model.config, "max_position_embeddings", None))
        rules = self._rules_for(config)
        order = sorted(range(len(requests)), key=lambda i: (-len(requests[i].prompt_ids), requests[i].prompt_ids))
        completions: dict[int, Completion] = {}
        was_training = self._model.training
        self._model.eval()
        try:
            for start in range(0, len(order), config.batch_size):
                chosen = order[start : start + config.batch_size]
                with memory_advice(f"lower sampling.batch_size {config.batch_size} or sampling.max_tokens"):
                    made = self._decode([requests[i] for i in chosen], config, rules, _renumbered(on_finished, chosen))
                completions.update(zip(chosen, made, strict=True))
                if on_progress is not None:
                    on_progress(len(completions), len(requests))
        finally:
            self._model.train(was_training)
        return [completions[i] for i in range(len(requests))]

    def _decode(
        self,
        requests: Sequence[PromptRequest],
        config: SamplingConfig,
        rules: StopRules,
        on_finished: Finished | None,
    ) -> list[Completion]:
        way = resolve_decoding(config.decoding, self._model)
        if way == "plain":
            padding = pad_id(self._model, self._tokenizer)
            return _Decoding(self._model, requests, config, rules, padding, on_finished).run()
        graphs = way == "graph"
        if self._decoder is None or self._decoder.model is not self._model or self._decoder.graphs != graphs:
            self._decoder = GraphDecoder(self._model, graphs)
        return self._decoder.run(requests, config, rules, on_finished)

    def _rules_for(self, config: SamplingConfig) -> StopRules:
        """Stop rules, kept from call to call: their table of a large vocabulary takes a second to make."""
        if self._rules is None or self._rules.config != config:
            self._rules = StopRules(self._tokenizer, config, self._eos, self._vocab_size)
        return self._rules


def _renumbered(on_finished: Finished | None, numbers: Sequence[int]) -> Finished | None:
    """The callback for a batch whose row r is request `numbers[r]`."""
    return None if on_finished is None else lambda row, text: on_finished(numbers[row], text)


class _Decoding:
    """One batch from prefill to the last token. Rows keep their number; `_rows` says which are still in the cache."""

    def __init__(
        self,
        model: PreTrainedModel,
        requests: Sequence[PromptRequest],
        config: SamplingConfig,
        rules: StopRules,
        padding: int,
        on_finished: Finished | None,
    ) -> None:
        self._model, self._requests, self._config, self._rules = model, requests, config, rules
        self._device = device_of(model)
        size = len(requests)
        self._padding = padding
        self._transcripts = Transcripts(size, rules, on_finished)
        self._rows = np.arange(size)
        self._log_probs = torch.zeros(size, config.max_tokens, device=self._device)
        self._entropies = torch.zeros(size, config.max_tokens, device=self._device)

    @torch.inference_mode()
    def run(self) -> list[Completion]:
        """Decode every row to its end."""
        logits = self._prefill()
        for position in range(self._config.max_tokens):
            draw = self._draw(logits, position)
            # The one wait for the device per step.
            self._transcripts.record(self._rows, draw.ids.cpu().numpy(), position)
            if not self._transcripts.alive.any() or position + 1 == self._config.max_tokens:
                break
            logits = self._forward(self._compact(draw.ids))
        return self._transcripts.completions(self._requests, self._log_probs, self._entropies)

    def _prefill(self) -> Tensor:
        """Run each distinct prompt once, left-padded; then give every row its own copy of the cache."""
        distinct: dict[tuple[int, ...], int] = {}
        owner = [distinct.setdefault(tuple(request.prompt_ids), len(distinct)) for request in self._requests]
        longest = max(len(prompt) for prompt in distinct)
        ids = torch.tensor([[self._padding] * (longest - len(prompt)) + list(prompt) for prompt in distinct])
        lengths = torch.tensor([len(prompt) for prompt in distinct])
        real = torch.arange(longest)[None, :] >= longest - lengths[:, None]
        self._cache = DynamicCache(config=self._model.config)
        self._next_position = lengths.to(self._device)
        # Without padding no mask is needed, and attention takes its fast path.
        self._mask = None if bool(real.all()) else real.long().to(self._device)
        positions = (real.long().cumsum(-1) - 1).clamp(min=0)
        logits = self._logits(ids.to(self._device), positions.to(self._device))
        if len(distinct) == len(owner):
            return logits
        rows = torch.tensor(owner, device=self._device)
        self._keep(rows)
        return logits[rows]

    def _forward(self, ids: Tensor) -> Tensor:
        """Logits after one more token per row."""
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(ids), 1)], dim=1)
        positions = self._next_position[:, None]
        self._next_position = self._next_position + 1
        return self._logits(ids[:, None], positions)

    def _logits(self, ids: Tensor, positions: Tensor) -> Tensor:
        """(A, V) logits at the last position; ids beyond the tokenizer are cut off, so they cannot be drawn."""
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1, : self._rules.vocab_size]
        return logits

    def _draw(self, logits: Tensor, position: int) -> Draw:
        if position % DRAWS_AHEAD == 0:
            seeds = [request.seed for request in self._requests]
            self._draws = torch.from_numpy(uniforms(seeds, position, DRAWS_AHEAD)).to(self._device)
            self._columns = torch.from_numpy(self._rows).to(self._device)
        draws = self._draws[self._columns, position % DRAWS_AHEAD]
        config = self._config
        draw = draw_tokens(logits, draws, config.temperature, config.top_p, self._rules.banned(position))
        self._log_probs[self._columns, position] = draw.log_probs
        self._entropies[self._columns, position] = draw.entropy
        return draw

    def _compact(self, ids: Tensor) -> Tensor:
        """Drop finished rows from cache and batch once enough of them have gathered."""
        alive = self._transcripts.alive[self._rows]
        if alive.mean() >= COMPACT_BELOW:
            return ids
        self._rows = self._rows[alive]
        kept = torch.from_numpy(np.flatnonzero(alive)).to(self._device)
        self._keep(kept)
        self._columns = self._columns[kept]
        return ids[kept]

    def _keep(self, rows: Tensor) -> None:
        """Make `rows` (repeats allowed) the rows of cache, mask and positions."""
        self._cache.batch_select_indices(rows)
        self._next_position = self._next_position[rows]
        if self._mask is not None:
            self._mask = self._mask[rows]
