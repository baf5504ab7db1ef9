"""Sampling with vllm's engine in this process: token ids in and out, weights synced from the trainer's model.

A completion is a function of (weights, prompt ids, request seed, settings), up to rounding, as with every sampler; its
draws are vllm's own, not those of the transformers sampler. Log-probs are of the distribution that was drawn from: at
the temperature, and with what may not be drawn left out (an EOS among the first `min_tokens`, ids beyond top-p).
"""

import itertools
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.config import SamplingConfig
from alignment_core.decoding import StopRules
from alignment_core.failures import MemberError
from alignment_core.hardware import memory_advice
from alignment_core.models import ComputeDtype, eos_ids
from alignment_core.records import Completion, FinishReason
from alignment_core.sampling import Finished, Progress, PromptRequest, check_requests
from alignment_core.vllm_engine import Engine, engine_for, import_vllm
from alignment_core.weight_sync import check_sync, sync_weights

_numbers = itertools.count()


class VllmSampler:
    """A `Sampler` over this process's vllm engine.

    Samplers of one shape share the engine: each samples from the weights that were synced last, by whichever.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: SamplingConfig,
        compute_dtype: ComputeDtype = "float32",
    ) -> None:
        self._tokenizer, self._compute_dtype = tokenizer, compute_dtype
        self._tolerance = config.vllm.sync_tolerance
        with memory_advice(
            f"lower sampling.vllm.gpu_memory_utilization {config.vllm.gpu_memory_utilization} or sampling.batch_size"
        ):
            self._engine, self.reused = engine_for(model, tokenizer, config, compute_dtype)
        self._eos = frozenset(id_ for id_ in eos_ids(model, tokenizer) if id_ < self._engine.vocab_size)
        self.update_weights(model)

    @property
    def engine(self) -> Engine:
        """The engine that samples."""
        return self._engine

    def describe(self) -> str:
        """A line for the log: whose engine samples, and how far its log-probs are from the trainer's."""
        engine = "the engine of an earlier stage or round" if self.reused else "an engine started for it"
        return (
            f"sampling: vllm {import_vllm().__version__}, {engine}; weights synced in memory, "
            f"log-probs of the probe within {self.sync_gap:.1e} nats per token"
        )

    def update_weights(self, model: PreTrainedModel) -> None:
        """Sample from `model`'s present weights from now on.

        Raises MemberError where a probe shows that the engine holds others.
        """
        sync_weights(self._engine, model)
        self.sync_gap = check_sync(self._engine, model, self._tokenizer, self._compute_dtype, self._tolerance)
        """Mean difference of the probe's log-probs, nats per token."""

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
        check_requests(requests, config, self._engine.positions)
        rules = StopRules(self._tokenizer, config, self._eos, self._engine.vocab_size)
        waiting = list(range(len(requests)))[::-1]
        flying: dict[str, int] = {}
        completions: dict[int, Completion] = {}
        with self._engine.device(), memory_advice("lower sampling.batch_size or sampling.max_tokens"):
            try:
                while waiting or flying:
                    while waiting and len(flying) < config.batch_size:
                        self._submit(requests[waiting[-1]], config, flying, waiting.pop())
                    for output in self._finished():
                        index = flying.pop(output.request_id)
                        completions[index] = _completion(requests[index], output.outputs[0], rules)
                        if on_finished is not None:
                            on_finished(index, completions[index].text)
                        if on_progress is not None:
                            on_progress(len(completions), len(requests))
            finally:
                if flying:  # of a call that was cut off: the next one must not meet them
                    self._engine.llm.abort_request(list(flying))
        return [completions[index] for index in range(len(requests))]

    def _submit(self, request: PromptRequest, config: SamplingConfig, flying: dict[str, int], index: int) -> None:
        name = f"sample-{next(_numbers)}"
        params = sampling_params(config, request.seed, self._eos)
        self._engine.llm.add_request(name, {"prompt_token_ids": request.prompt_ids}, params)
        flying[name] = index

    def _finished(self) -> list[Any]:
        """What one step of the engine ends."""
        return [output for output in self._engine.llm.step() if output.finished]


def sampling_params(config: SamplingConfig, seed: int, eos: frozenset[int]) -> Any:
    """`vllm.SamplingParams` of one request, with every field set that shapes a completion.

    The stop string's token stays in the ids and its text in the text; special tokens are shown, as a stop may be one.
    """
    vllm = import_vllm()
    return vllm.SamplingParams(
        n=1,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        repetition_penalty=1.0,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=0,
        min_p=0.0,
        seed=seed,
        stop=list(config.stop),
        stop_token_ids=sorted(eos),
        bad_words=None,
        ignore_eos=False,
        max_tokens=config.max_tokens,
        min_tokens=min(config.min_tokens, config.max_tokens),
        logprobs=0,
        prompt_logprobs=None,
        detokenize=True,
        skip_special_tokens=False,
        spaces_between_special_tokens=True,
        include_stop_str_in_output=True,
        output_kind=vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        flat_logprobs=True,
        logit_bias=None,
        allowed_token_ids=None,
        structured_outputs=None,
        extra_args=None,
    )


def _completion(request: PromptRequest, output: Any, rules: StopRules) -> Completion:
    """Our record of a `vllm.CompletionOutput`; the text is decoded as every sampler does it."""
    ids = list(output.token_ids)
    flat = output.logprobs
    return Completion(
        problem_id=request.problem_id,
        sample_index=request.sample_index,
        prompt_ids=request.prompt_ids,
        response_ids=ids,
        text=rules.text(ids),
        finish_reason=_finish_reason(output),
        sampler_log_probs=[flat.logprobs[start] for start in flat.start_indices[: len(ids)]],
    )


def _finish_reason(output: Any) -> FinishReason:
    """vllm says `stop` for stop strings, whose text is then the reason, and for EOS, of which it gives the id or none.

    Raises MemberError for an end that is no end of a text.
    """
    if output.finish_reason == "length":
        return "length"
    if output.finish_reason != "stop":
        raise MemberError(f"vllm ended a completion by {output.finish_reason!r}: see its log above, and run again")
    return "stop" if isinstance(output.stop_reason, str) else "eos"
