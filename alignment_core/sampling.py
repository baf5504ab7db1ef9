"""What sampling is, whoever does it: requests in, completions out, token ids on both sides.

A completion is a function of (weights, prompt ids, request seed, settings) and of nothing else: neither of the
batch it was decoded in nor of the order of the requests, up to rounding of the logits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.batching import TokenSequence
from alignment_core.config import SamplingConfig
from alignment_core.models import ComputeDtype
from alignment_core.records import Completion, Problem
from alignment_core.seeding import derive_seed

Progress = Callable[[int, int], None]
"""Called with (completions done, completions asked for)."""

Finished = Callable[[int, str], None]
"""Called with (number of the request, text of its response) as soon as that has ended, others going on meanwhile."""

Say = Callable[[str], None]
"""Takes a line for the log."""


@dataclass(frozen=True)
class PromptRequest:
    """One completion asked for."""

    problem_id: str
    sample_index: int
    prompt_ids: list[int]
    seed: int
    """Decides this completion's random draws, alone."""


class Sampler(Protocol):
    """Draws completions from a policy."""

    def sample(
        self,
        requests: Sequence[PromptRequest],
        config: SamplingConfig,
        on_progress: Progress | None = None,
        on_finished: Finished | None = None,
    ) -> list[Completion]:
        """One completion per request, in their order; each text is handed to `on_finished` once, as it ends."""

    def update_weights(self, model: PreTrainedModel) -> None:
        """Sample from `model`'s present weights from now on; to be called after every change of them."""


def make_sampler(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: SamplingConfig,
    compute_dtype: ComputeDtype = "float32",
    say: Say | None = None,
) -> Sampler:
    """The sampler `config.backend` names, over a loaded model; what it runs on goes to `say`, where that is to be told.

    Raises ValueError, with the remedy, where vllm is asked for and cannot serve.
    """
    # Imported here: this module's types serve rooms that never load a sampler.
    if config.backend == "vllm":
        from alignment_core.vllm_sampler import VllmSampler

        made = VllmSampler(model, tokenizer, config, compute_dtype)
        if say is not None:
            say(made.describe())
        return made
    from alignment_core.transformers_sampler import TransformersSampler

    return TransformersSampler(model, tokenizer, compute_dtype)


def check_requests(requests: Sequence[PromptRequest], config: SamplingConfig, positions: int | None) -> None:
    """Raise ValueError for an empty prompt, or where prompt and response would not fit `positions` (None: no limit)."""
    empty = [request.problem_id for request in requests if not request.prompt_ids]
    if empty:
        raise ValueError(f"the prompt of problem {empty[0]} has no token: give the template some text")
    longest = max((len(request.prompt_ids) for request in requests), default=0)
    if positions is not None and longest + config.max_tokens > positions:
        raise ValueError(
            f"a prompt of {longest} tokens and {config.max_tokens} new ones exceed the model's {positions} "
            "positions: lower sampling.max_tokens or shorten the template"
        )


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Ids of a prompt: its text, after the BOS token where the tokenizer puts one before every text.

    Raises ValueError for a prompt without a token.
    """
    ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False)
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer.encode("", add_special_tokens=True)[:1] == [bos]:
        ids = [bos, *ids]
    if not ids:
        raise ValueError("a prompt has no token: give the template some text")
    return ids


def encode_trace(
    tokenizer: PreTrainedTokenizerBase, prompt: str, response: str, append_eos: bool = False
) -> TokenSequence:
    """Prompt and response tokenized apart, as a rollout is made of them.

    Traces end in the stop string, which ends a rollout by itself, so no EOS follows them; `append_eos` is for
    responses that only an EOS would end. Raises ValueError if it is asked for and the tokenizer has none.
    """
    ids: list[int] = tokenizer.encode(response, add_special_tokens=False)
    if append_eos:
        if not isinstance(tokenizer.eos_token_id, int):
            raise ValueError("append_eos needs an EOS token, and this tokenizer has none: leave it out")
        ids = [*ids, tokenizer.eos_token_id]
    return TokenSequence(prompt_ids=encode_prompt(tokenizer, prompt), response_ids=ids)


def build_requests(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, samples_per_problem: int, *seed_parts: int | str
) -> list[PromptRequest]:
    """P problems x G samples, problem by problem; each seed is derived from (seed_parts, problem id, sample index).

    A problem that occurs twice goes on counting its samples, so that the second group is not a copy of the first.
    """
    requests: list[PromptRequest] = []
    next_index: dict[str, int] = {}
    for problem in problems:
        prompt_ids = encode_prompt(tokenizer, problem.prompt)
        first = next_index.get(problem.id, 0)
        next_index[problem.id] = first + samples_per_problem
        for index in range(first, first + samples_per_problem):
            seed = derive_seed(*seed_parts, problem.id, index)
            requests.append(PromptRequest(problem.id, index, prompt_ids, seed))
    return requests
