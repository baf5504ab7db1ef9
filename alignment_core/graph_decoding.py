"""Fast decoding on a GPU: a cache of fixed size and one CUDA graph per batch size, replayed for every token.

A step of ordinary decoding spends its time launching a thousand small kernels; a graph launches them at once. The
recorded step runs from the newest token ids to the next ones, draw, log-prob and entropy included, so nothing
comes to the host but the ids, a round of steps at a time and one round late. Rows that have ended go on as padding,
and what they say is dropped, until the others fit a smaller batch. Without graphs the same code runs on any device.

Shapes: A slots running, R slots at most (and output columns, plus one for padding), M response positions.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment_core.config import Decoding, SamplingConfig
from alignment_core.decode_step import can_flash, decode, new_cache, prefill, unsupported
from alignment_core.decoding import StopRules, draw_tokens
from alignment_core.failures import MemberError
from alignment_core.models import device_of
from alignment_core.random_draws import uniforms
from alignment_core.records import Completion
from alignment_core.sampling import Finished, PromptRequest
from alignment_core.transcripts import Transcripts

SIZES = (4, 8, 16, 32, 64, 96, 128, 192, 256)
"""Batch sizes a step is recorded for; above them, multiples of the last."""

ROUND = 8
"""Steps between looks at the tokens; a row's end is noticed up to two rounds late."""

SPAN = 256
"""Lengths of the cache, and of what plain attention reads of it, are multiples of this."""


def resolve_decoding(decoding: Decoding, model: nn.Module) -> Literal["plain", "static", "graph"]:
    """The way to decode `model`: auto takes graphs where they run, else the plain way.

    Raises ValueError for a way that this model or its device does not have.
    """
    if decoding == "plain":
        return "plain"
    on_cuda = device_of(model).type == "cuda"
    reason = unsupported(model)
    if decoding == "graph" and not on_cuda:
        reason = "CUDA graphs need the model on a CUDA device"
    if decoding != "auto" and reason is not None:
        raise ValueError(f"sampling.decoding {decoding} is not possible: {reason}; set it to auto")
    if decoding == "auto":
        return "graph" if on_cuda and reason is None else "plain"
    return decoding


class StepKind(NamedTuple):
    """All that one recorded step differs from another in."""

    size: int
    """A: slots that run."""
    span: int
    """Cache positions that may be filled."""
    bans_eos: bool
    temperature: float
    top_p: float


class GraphDecoder:
    """Decodes batches with one model. Buffers and graphs are kept from call to call.

    Graphs hold the addresses of the weights: weights changed in place are followed, and moved ones noticed.
    `flash` None takes the flash kernel where it runs, False plain attention everywhere.
    """

    def __init__(self, model: PreTrainedModel, graphs: bool, flash: bool | None = None) -> None:
        self.model, self.graphs = model, graphs
        self.flash = can_flash(model) if flash is None else flash
        self._buffers: Buffers | None = None
        self._weights: tuple[int, ...] = ()
        self._forget()

    @torch.inference_mode()
    def run(
        self,
        requests: Sequence[PromptRequest],
        config: SamplingConfig,
        rules: StopRules,
        on_finished: Finished | None = None,
    ) -> list[Completion]:
        """Decode every request to its end; completions in their order. At least one request."""
        weights = tuple(weight.data_ptr() for weight in self.model.parameters())
        if weights != self._weights:
            self._forget()
        self._weights = weights
        buffers = self._buffers_for(requests, config, rules)
        return _Batch(self, buffers, requests, config, rules, on_finished).run()

    def step(self, kind: StepKind, buffers: "Buffers", rules: StopRules) -> None:
        """One more token for the first A slots.

        The first step of a kind runs as it is, which also warms it up; the second is recorded; later ones replay.
        """
        if not self.graphs or kind not in self._recorded:
            self._recorded[kind] = None
            self._step(kind, buffers, rules)
            return
        graph = self._recorded[kind] or self._record(kind, buffers, rules)
        graph.replay()

    def draw(self, hidden: Tensor, kind: StepKind, buffers: "Buffers", rules: StopRules) -> None:
        """Draw the tokens that follow (A, H) hidden states; write them, their scores and the next step's number."""
        logits = self.model.get_output_embeddings()(hidden)[:, : rules.vocab_size]
        step, owner = buffers.step, buffers.owner[: kind.size]
        draws = buffers.draws.index_select(0, step)[0, owner]
        draw = draw_tokens(logits, draws, kind.temperature, kind.top_p, buffers.eos if kind.bans_eos else ())
        buffers.tokens[step, owner] = draw.ids
        buffers.log_probs[step, owner] = draw.log_probs
        buffers.entropies[step, owner] = draw.entropy
        buffers.ids[: kind.size] = draw.ids
        step.add_(1)

    def _step(self, kind: StepKind, buffers: "Buffers", rules: StopRules) -> None:
        position = buffers.position[: kind.size]
        hidden = decode(self.model, buffers.ids[: kind.size], position, buffers.cache, kind.span, self.flash)
        position.add_(1)
        self.draw(hidden, kind, buffers, rules)

    def _record(self, kind: StepKind, buffers: "Buffers", rules: StopRules) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads of this process may use the device meanwhile, hence thread_local.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._step(kind, buffers, rules)
        except RuntimeError as error:
            raise MemberError(
                f"recording a decoding step as a CUDA graph failed ({error}): set sampling.decoding to static, "
                "which runs it without a graph, or to plain"
            ) from error
        self._recorded[kind] = graph
        return graph

    def _buffers_for(self, requests: Sequence[PromptRequest], config: SamplingConfig, rules: StopRules) -> "Buffers":
        """Buffers that hold the batch: the present ones, or larger ones in their place."""
        longest = max(len(request.prompt_ids) for request in requests)
        needed = (padded_size(len(requests)), round_up(longest + config.max_tokens, SPAN), config.max_tokens)
        held = self._buffers.capacity if self._buffers is not None else (0, 0, 0)
        if self._buffers is None or any(want > have for want, have in zip(needed, held, strict=True)):
            # Dropped first: the old cache and the new one need not fit together.
            self._buffers = None
            self._forget()
            rows, length, limit = (max(pair) for pair in zip(needed, held, strict=True))
            self._buffers = Buffers(self.model, rows, length, limit, rules)
        return self._buffers

    def _forget(self) -> None:
        """Drop the graphs: they hold addresses that are no longer right."""
        self._recorded: dict[StepKind, torch.cuda.CUDAGraph | None] = {}
        self._pool: Any = torch.cuda.graph_pool_handle() if self.graphs else None


class Buffers:
    """Every tensor that steps read and write, at fixed addresses. Rows keep their output column when they move."""

    def __init__(self, model: PreTrainedModel, rows: int, length: int, limit: int, rules: StopRules) -> None:
        device = device_of(model)
        self.capacity = (rows, length, limit)
        self.cache = new_cache(model, rows, length)
        self.ids = torch.zeros(rows, dtype=torch.int64, device=device)
        """(R,) newest token of each slot, not yet in the cache."""
        self.position = torch.zeros_like(self.ids)
        """(R,) where it goes."""
        self.owner = torch.zeros_like(self.ids)
        """(R,) output column of each slot."""
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        """Response position drawn next."""
        self.tokens = torch.zeros(limit, rows + 1, dtype=torch.int64, device=device)
        self.draws = torch.zeros(limit, rows + 1, dtype=torch.float64, device=device)
        self.log_probs = torch.zeros(limit, rows + 1, device=device)
        self.entropies = torch.zeros(limit, rows + 1, device=device)
        self.eos = torch.tensor(sorted(id_ for id_ in rules.eos if id_ < rules.vocab_size), device=device).long()
        pinned = device.type == "cuda"
        self.staged = [torch.zeros(ROUND, rows + 1, dtype=torch.int64, pin_memory=pinned) for _ in range(2)]
        """Host copies of two rounds' tokens."""

    def begin(self, requests: Sequence[PromptRequest], max_tokens: int) -> None:
        """Set up slot n for request n, and the slots after them as padding, which writes to the last column."""
        count, device = len(requests), self.ids.device
        self.ids.zero_()
        self.step.zero_()
        self.position.zero_()
        self.position[:count] = torch.tensor([len(request.prompt_ids) for request in requests], device=device)
        self.owner.fill_(self.capacity[0])
        self.owner[:count] = torch.arange(count, device=device)
        draws = uniforms([request.seed for request in requests], 0, max_tokens)
        self.draws[:max_tokens, :count] = torch.from_numpy(draws).to(device).T

    def move(self, sources: Tensor, targets: Tensor, length: int) -> None:
        """Put the rows of slots `sources`, `length` positions of them, into slots `targets`."""
        self.cache.move(sources, targets, length)
        for values in (self.ids, self.position, self.owner):
            values[targets] = values[sources]


class _Round(NamedTuple):
    """Tokens on their way to the host."""

    position: int
    tokens: Tensor
    """(steps, R + 1), to be read after `copied`."""
    copied: torch.cuda.Event | None


class _Batch:
    """One batch from prefill to the last token."""

    def __init__(
        self,
        decoder: GraphDecoder,
        buffers: Buffers,
        requests: Sequence[PromptRequest],
        config: SamplingConfig,
        rules: StopRules,
        on_finished: Finished | None,
    ) -> None:
        self._decoder, self._buffers, self._rules = decoder, buffers, rules
        self._requests, self._config = requests, config
        self._longest = max(len(request.prompt_ids) for request in requests)
        self._transcripts = Transcripts(len(requests), rules, on_finished)
        self._slots = np.full(padded_size(len(requests)), -1)
        """Which row each running slot holds; -1 is padding."""
        self._slots[: len(requests)] = np.arange(len(requests))

    def run(self) -> list[Completion]:
        """Decode every row to its end, reading a round's tokens while the next one runs."""
        limit = self._config.max_tokens
        self._begin()
        unread, done = self._fetch(0, 1, 0), 1
        while done < limit and self._transcripts.alive.any():
            count = min(ROUND, limit - done)
            for position in range(done, done + count):
                self._decoder.step(self._kind(len(self._slots), position), self._buffers, self._rules)
            fresh = self._fetch(done, count, 1 + done // ROUND)
            self._read(unread)
            unread, done = fresh, done + count
            self._shrink(done)
        self._read(unread)
        rows = len(self._requests)
        log_probs, entropies = self._buffers.log_probs[:limit, :rows].T, self._buffers.entropies[:limit, :rows].T
        return self._transcripts.completions(self._requests, log_probs, entropies)

    def _begin(self) -> None:
        """Prompts into the cache, and the first token of every row."""
        self._buffers.begin(self._requests, self._config.max_tokens)
        prompts = [request.prompt_ids for request in self._requests]
        hidden = prefill(self._decoder.model, prompts, self._buffers.cache)
        self._decoder.draw(hidden, self._kind(len(prompts), 0), self._buffers, self._rules)

    def _kind(self, size: int, position: int) -> StepKind:
        """The kind of step that draws the token at a 0-based response position."""
        span = self._buffers.capacity[1]
        if not self._decoder.flash:
            span = min(span, round_up(self._longest + position, SPAN))
        config = self._config
        return StepKind(size, span, position < config.min_tokens, config.temperature, config.top_p)

    def _fetch(self, position: int, count: int, turn: int) -> _Round:
        """Start copying the tokens of `count` steps; the other of two buffers holds the round before."""
        host = self._buffers.staged[turn % 2][:count]
        host.copy_(self._buffers.tokens[position : position + count], non_blocking=True)
        if not host.is_pinned():
            return _Round(position, host, None)
        copied = torch.cuda.Event()
        copied.record()
        return _Round(position, host, copied)

    def _read(self, fetched: _Round) -> None:
        """Note what a round said, step by step, and which rows it ended."""
        if fetched.copied is not None:
            fetched.copied.synchronize()
        for offset, ids in enumerate(fetched.tokens.numpy()):
            rows = np.flatnonzero(self._transcripts.alive)
            self._transcripts.record(rows, ids[rows], fetched.position + offset)

    def _shrink(self, done: int) -> None:
        """Once the rows still alive fit a smaller batch, move those behind its end into slots of finished ones."""
        alive = np.flatnonzero((self._slots >= 0) & self._transcripts.alive[self._slots])
        size = padded_size(len(alive))
        if size >= len(self._slots):
            return
        moving = alive[alive >= size]
        free = np.setdiff1d(np.arange(size), alive)[: len(moving)]
        if len(moving):
            device = self._buffers.ids.device
            sources, targets = (torch.from_numpy(slots).to(device) for slots in (moving, free))
            self._buffers.move(sources, targets, self._longest + done)
        self._slots[free] = self._slots[moving]
        self._slots = self._slots[:size]


def padded_size(rows: int) -> int:
    """The smallest recorded batch size that holds `rows`."""
    return next((size for size in SIZES if size >= rows), round_up(rows, SIZES[-1]))


def round_up(value: int, step: int) -> int:
    """The smallest multiple of `step` that is not below `value`."""
    return -(-value // step) * step
