"""The vllm sampler on vllm itself (its CPU build will do): the contract, weight sync and its probe, a GRPO run.

Nothing here stands in for vllm. Without the package the tests are skipped, but for what is said in its absence.
"""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sampler_contract import CONFIG, TEXTS, TOKENIZER, SamplerContract, ids_in, ids_of, model_of, requests_of
from tiny_loops import GRPO, PROBLEMS, likes_low_letters, series
from transformers import Qwen2ForCausalLM

from alignment_core import vllm_engine, weight_sync
from alignment_core.config import SamplingConfig, VllmConfig
from alignment_core.failures import MemberError
from alignment_core.models import load_model, load_tokenizer, save_model
from alignment_core.policy_gradient import train_grpo
from alignment_core.runs import MemoryRun
from alignment_core.sampling import PromptRequest, make_sampler
from alignment_core.training_config import GRPOConfig
from alignment_core.vllm_sampler import VllmSampler, sampling_params

HAS_VLLM = importlib.util.find_spec("vllm") is not None
on_vllm = pytest.mark.skipif(
    not HAS_VLLM, reason="vllm is not installed here: `.ci/run` runs these tests in .vllm, see CONTRIBUTING.md"
)
ENGINE = VllmConfig(kv_cache_gb=0.05, enforce_eager=True)
VLLM = CONFIG.model_copy(update={"backend": "vllm", "vllm": ENGINE, "batch_size": 64})


def vllm_sampler(model: Any, compute_dtype: str = "float32", **changes: Any) -> VllmSampler:
    """All of these share an engine, so long as type and vocabulary are the same."""
    sampler = make_sampler(model, TOKENIZER, VLLM.model_copy(update=changes), compute_dtype)
    assert isinstance(sampler, VllmSampler)
    return sampler


@pytest.fixture(scope="module", autouse=True)
def _engine_ends() -> Iterator[None]:
    yield
    vllm_engine.stop_engine()


def say(model: Any, sequence: torch.Tensor) -> None:
    """Have vllm's model say `sequence[p]` at position p; id 0 is the second choice where that is banned."""

    def forward(input_ids: torch.Tensor, positions: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return positions[:, None].float().expand(-1, 128).contiguous()

    def compute_logits(hidden: torch.Tensor, *_: Any) -> torch.Tensor:
        logits = torch.zeros(len(hidden), len(TOKENIZER))
        logits[:, 0] = 50.0
        return logits.scatter_(1, sequence[hidden[:, :1].long()], 100.0)

    model.forward, model.compute_logits = forward, compute_logits


def unsay(model: Any) -> None:
    del model.forward, model.compute_logits


@pytest.mark.slow
@on_vllm
class TestVllm(SamplerContract):
    """The contract, by the vllm sampler."""

    renormalised = True
    gives_entropy = False

    def sampler(self, model, config=CONFIG, compute_dtype="float32"):
        return vllm_sampler(model, compute_dtype)

    def scripted(self, script, config=CONFIG, tail=1):
        sampler = vllm_sampler(model_of())
        sampler.engine.llm.apply_model(lambda model: say(model, torch.tensor([tail, *script, *[tail] * 128])))
        try:
            return sampler.sample(requests_of(["ab"]), config)[0]
        finally:
            sampler.engine.llm.apply_model(unsay)


# The engine.


@pytest.mark.slow
@on_vllm
def test_one_engine_serves_every_stage_of_a_process(tmp_path: Path):
    samplers = []
    for seed, name in enumerate(("round-01", "round-02")):
        save_model(model_of(seed=seed), TOKENIZER, tmp_path / name)
        model, tokenizer = load_model(tmp_path / name), load_tokenizer(tmp_path / name)
        samplers.append(make_sampler(model, tokenizer, VLLM))
        assert samplers[-1].sync_gap < 1e-5
    assert samplers[0].engine is samplers[1].engine
    assert samplers[1].reused


@pytest.mark.slow
@on_vllm
def test_one_engine_serves_every_sampler_of_a_shape():
    first, second = vllm_sampler(model_of()), vllm_sampler(model_of(vocab_size=400, seed=1))
    assert first.engine is second.engine
    assert second.reused
    # The weights are those synced last, by whichever sampler.
    first.update_weights(model_of())
    expected = ids_in(first.sample(requests_of(TEXTS), CONFIG))
    second.update_weights(model_of(seed=1))
    assert ids_in(first.sample(requests_of(TEXTS), CONFIG)) != expected


@pytest.mark.slow
@on_vllm
def test_every_field_that_shapes_a_completion_is_set():
    import vllm

    params = sampling_params(SamplingConfig(temperature=0.7, top_p=0.9, max_tokens=9, min_tokens=20), 5, frozenset({3}))
    asked = (params.temperature, params.top_p, params.max_tokens, params.min_tokens, params.seed)
    assert asked == (0.7, 0.9, 9, 9, 5)
    assert (params.stop, params.stop_token_ids, params.include_stop_str_in_output) == (["</answer>"], [3], True)
    off = {name: getattr(params, name) for name in ("presence_penalty", "frequency_penalty", "top_k", "min_p")}
    assert set(off.values()) == {0}
    assert (params.repetition_penalty, params.n, params.logprobs, params.skip_special_tokens) == (1.0, 1, 0, False)
    settings = vllm_sampler(model_of()).engine.llm.model_config
    assert (settings.generation_config, settings.logprobs_mode) == ("vllm", "processed_logprobs")
    assert vllm.envs.VLLM_ENABLE_V1_MULTIPROCESSING is False


@pytest.mark.slow
@on_vllm
def test_an_interrupted_call_leaves_nothing_behind():
    sampler = vllm_sampler(model_of())
    expected = ids_in(sampler.sample(requests_of(TEXTS, 4), CONFIG))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    uneven = CONFIG.model_copy(update={"stop": tuple("abcdefghij"), "max_tokens": 60, "batch_size": 64})
    with pytest.raises(KeyboardInterrupt):
        sampler.sample(requests_of(TEXTS, 8), uneven, on_progress=stop)
    assert not sampler.engine.llm.has_unfinished_requests()
    assert ids_in(sampler.sample(requests_of(TEXTS, 4), CONFIG)) == expected


@pytest.mark.slow
@on_vllm
def test_a_response_is_handed_over_while_others_go_on():
    config = CONFIG.model_copy(update={"stop": tuple("abcdefghij"), "max_tokens": 60, "batch_size": 64})
    sampler = vllm_sampler(model_of())
    unfinished: list[int] = []
    sampler.sample(
        requests_of(TEXTS, 8),
        config,
        on_finished=lambda *_: unfinished.append(sampler.engine.llm.get_num_unfinished_requests()),
    )
    assert unfinished[0] > 20
    assert unfinished[-1] == 0


@pytest.mark.slow
@on_vllm
def test_more_prompt_tokens_than_one_step_takes_change_nothing():
    prompts = [ids_of(f"{n:03d} {'abc' * 36}") for n in range(128)]
    requests = [PromptRequest(f"p{n}", 0, ids, n) for n, ids in enumerate(prompts)]
    assert sum(map(len, prompts)) > vllm_engine.PREFILL_TOKENS
    together = vllm_sampler(model_of(), batch_size=128).sample(
        requests, CONFIG.model_copy(update={"max_tokens": 4, "batch_size": 128})
    )
    few = vllm_sampler(model_of()).sample(requests[:9], CONFIG.model_copy(update={"max_tokens": 4}))
    assert ids_in(together[:9]) == ids_in(few)


# Weight sync.


@pytest.mark.slow
@on_vllm
@pytest.mark.parametrize("tied", [True, False])
def test_synced_weights_are_the_trainers_and_stay_until_the_next_sync(tied: bool):
    model = model_of()
    config = model.config
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).eval()
    sampler = vllm_sampler(model)
    assert sampler.sync_gap < 1e-5
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    assert gap(sampler, model) > 0.05
    sampler.update_weights(model)
    assert sampler.sync_gap < 1e-5
    assert gap(sampler, model) < 1e-5


def gap(sampler: VllmSampler, model: Any) -> float:
    return weight_sync.check_sync(sampler.engine, model, TOKENIZER, "float32", tolerance=100.0)


@pytest.mark.slow
@on_vllm
@pytest.mark.parametrize(
    "left_out",
    [
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.bias",
        "model.norm.weight",
        "model.embed_tokens.weight",
    ],
)
def test_the_probe_finds_a_weight_that_was_not_synced(left_out: str, monkeypatch: pytest.MonkeyPatch):
    model = model_of()
    sampler = vllm_sampler(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    stale = dict(model_of().named_parameters())[left_out].detach()
    original = weight_sync.named_weights

    def without_one(*arguments: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in original(*arguments):
            yield name, stale if name == left_out else weight

    monkeypatch.setattr(weight_sync, "named_weights", without_one)
    with pytest.raises(MemberError, match=r"differ from the trainer's by .* sampling\.backend transformers"):
        sampler.update_weights(model)
    monkeypatch.undo()
    sampler.update_weights(model)


@pytest.mark.slow
@on_vllm
def test_the_probe_finds_a_tied_head_that_kept_its_old_copy(monkeypatch: pytest.MonkeyPatch):
    """vllm's CPU kernels read a packed copy of the head, which a reload of the shared embedding does not reach."""
    sampler = vllm_sampler(model_of())
    monkeypatch.setattr(weight_sync, "_repack_tied_head", lambda _: None)
    with pytest.raises(MemberError, match="differ from the trainer's"):
        sampler.update_weights(model_of(seed=1))


@pytest.mark.slow
@on_vllm
def test_no_prompt_is_answered_from_a_cache_of_old_weights():
    def long_model(seed: int) -> Any:
        config = model_of().config
        config.max_position_embeddings = 512
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config).eval()

    old, new = long_model(0), long_model(1)
    sampler = vllm_sampler(old)
    prompt = ids_of("several blocks of the cache " * 14)
    assert len(prompt) > 2 * sampler.engine.llm.vllm_config.cache_config.block_size
    greedy = CONFIG.model_copy(update={"temperature": 0.0})
    requests = [PromptRequest("p", n, prompt, n) for n in range(3)]
    sampler.sample(requests, greedy)
    sampler.update_weights(new)
    expected = make_sampler(new, TOKENIZER, greedy).sample(requests, greedy)
    found = sampler.sample(requests, greedy)
    assert ids_in(found) == ids_in(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.sampler_log_probs == pytest.approx(other.sampler_log_probs, abs=1e-4)


# A run.


def grpo_run(**changes: Any) -> tuple[MemoryRun, VllmSampler]:
    model, run = model_of(), MemoryRun()
    config = GRPOConfig(**{**GRPO, "n_grpo_steps": 12, "rollout_batch_size": 32, "train_batch_size": 32, **changes})
    sampling = VLLM.model_copy(update={"max_tokens": 6})
    sampler = vllm_sampler(model)
    train_grpo(model, TOKENIZER, PROBLEMS, config, sampling, likes_low_letters, run, seed=3, sampler=sampler)
    return run, sampler


@pytest.mark.slow
@on_vllm
def test_grpo_learns_an_easy_reward_from_vllms_samples():
    run, sampler = grpo_run()
    rewards = series(run, "train/reward")
    assert len(rewards) == 12
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2
    assert max(series(run, "train/sampler_gap_max")) < 1e-4
    assert sampler.sync_gap < 1e-4


@pytest.mark.slow
@on_vllm
def test_a_run_repeats_itself():
    first, second = (grpo_run(n_grpo_steps=3)[0] for _ in range(2))
    assert series(first, "train/loss") == pytest.approx(series(second, "train/loss"), abs=1e-6)
    assert series(first, "train/reward") == series(second, "train/reward")


# Without vllm, and settings.


def test_absence_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"flows\.bootstrap install gpu.*sampling\.backend transformers"):
        make_sampler(model_of(), TOKENIZER, VLLM)


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_temperatures_that_vllm_would_replace_are_refused(temperature: float):
    with pytest.raises(ValueError, match="vllm samples greedily"):
        SamplingConfig(backend="vllm", temperature=temperature)
    assert SamplingConfig(temperature=temperature).temperature == temperature


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vllm_engine, "import_vllm", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = VLLM.model_copy(update={"vllm": VllmConfig(gpu=1)})
    with pytest.raises(ValueError, match=r"sampling\.vllm\.gpu is 1, and there are 1 GPUs"):
        make_sampler(model_of(), TOKENIZER, config)


def test_the_key_holds_the_backend_and_not_where_it_lies():
    plain = SamplingConfig().key_settings()
    assert (plain["backend"], "vllm" in plain, plain["decoding"]) == ("transformers", False, "auto")
    there = SamplingConfig(backend="vllm", vllm=VllmConfig(gpu=1, gpu_memory_utilization=0.5, kv_cache_gb=2.0))
    assert there.key_settings() == SamplingConfig(backend="vllm").key_settings()
    assert there.key_settings()["backend"] == "vllm"
    eager = SamplingConfig(backend="vllm", vllm=VllmConfig(enforce_eager=True))
    assert eager.key_settings() != there.key_settings()
