"""Sampling: the draws, the end of a response, and independence of the batch."""

from collections import Counter

import pytest
import torch
from tiny_models import ScriptedModel, byte_tokenizer, tiny_model

from alignment_core.batching import TokenSequence, collate
from alignment_core.config import SamplingConfig
from alignment_core.decoding import draw_tokens, inverse_cdf, nucleus
from alignment_core.logprobs import response_log_probs
from alignment_core.random_draws import permutation, uniforms
from alignment_core.records import Completion, Problem
from alignment_core.sampling import PromptRequest, build_requests, encode_prompt, encode_trace, make_sampler

TOKENIZER = byte_tokenizer("r>!")
EOS = TOKENIZER.eos_token_id
CONFIG = SamplingConfig(max_tokens=12, stop=("</answer>",), batch_size=8)


def requests_of(texts: list[str], group: int = 1) -> list[PromptRequest]:
    problems = [Problem(id=f"p{i}", question="", prompt=text, ground_truth="") for i, text in enumerate(texts)]
    return build_requests(problems, TOKENIZER, group, 7, "test")


def scripted(script: list[int], config: SamplingConfig, tail: int = 1) -> Completion:
    """What is sampled from a model that says `script` after a prompt of two tokens."""
    sampler = make_sampler(ScriptedModel(TOKENIZER, 2, script, tail), TOKENIZER, config)
    return sampler.sample(requests_of(["ab"]), config)[0]


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


# Draws.


def test_a_draw_depends_on_its_seed_and_position_only():
    together = uniforms([3, -1, 2**63 - 1], 0, 100)
    assert (uniforms([2**63 - 1], 40, 10)[0] == together[2, 40:50]).all()
    assert together.min() >= 0
    assert together.max() < 1


def test_draws_of_neighbouring_seeds_are_uniform_and_uncorrelated():
    draws = torch.from_numpy(uniforms(range(200), 0, 200))
    assert draws.mean().item() == pytest.approx(0.5, abs=0.006)
    assert draws.var().item() == pytest.approx(1 / 12, abs=0.003)
    neighbours = torch.corrcoef(torch.stack([draws[:-1].flatten(), draws[1:].flatten()]))[0, 1]
    successors = torch.corrcoef(torch.stack([draws[:, :-1].flatten(), draws[:, 1:].flatten()]))[0, 1]
    assert abs(neighbours.item()) < 0.02
    assert abs(successors.item()) < 0.02


def test_permutation_is_one_and_differs_by_seed():
    assert sorted(permutation(50, 1)) == list(range(50))
    assert permutation(50, 1) == permutation(50, 1)
    assert permutation(50, 1) != permutation(50, 2)


@pytest.mark.parametrize(
    ("draw", "expected"), [(0.0, 0), (0.1999, 0), (0.2001, 2), (0.4999, 2), (0.5001, 3), (1 - 2**-52, 3)]
)
def test_inverse_cdf_takes_the_interval_the_draw_falls_in(draw: float, expected: int):
    weights = torch.tensor([[0.2, 0.0, 0.3, 0.5, 0.0]], dtype=torch.float64)
    assert inverse_cdf(weights * 3, torch.tensor([draw], dtype=torch.float64)).item() == expected


def test_nucleus_keeps_the_smallest_set_that_reaches_top_p():
    weights = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64)
    assert nucleus(weights, 0.65).tolist() == [[0.0, 0.4, 0.0, 0.3]]
    assert nucleus(weights, 0.75).tolist() == [[0.0, 0.4, 0.2, 0.3]]
    assert nucleus(weights, 0.01).tolist() == [[0.0, 0.4, 0.0, 0.0]]


def test_sampled_frequencies_follow_the_tempered_distribution():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -2.0, 1.5, 0.2])
    count = 20_000
    draws = torch.from_numpy(uniforms(range(count), 5, 1)[:, 0])
    ids = draw_tokens(logits.expand(count, -1), draws, temperature=1.7).ids
    expected = (logits / 1.7).softmax(-1) * count
    chi_square = ((torch.bincount(ids, minlength=8) - expected) ** 2 / expected).sum().item()
    assert chi_square < 24.3  # 99.9 % point at 7 degrees of freedom


def test_log_probs_and_entropy_are_of_the_tempered_distribution():
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]])
    draw = draw_tokens(logits, torch.tensor([0.9, 0.5], dtype=torch.float64), temperature=2.0, top_p=0.5)
    assert torch.allclose(draw.log_probs, (logits / 2).log_softmax(-1).gather(1, draw.ids[:, None])[:, 0])
    assert draw.entropy[1].item() == pytest.approx(torch.log(torch.tensor(3.0)).item())


def test_banned_ids_are_never_drawn_even_when_certain():
    logits = torch.tensor([[200.0, 0.0, 1.0]]).expand(500, -1)
    draws = torch.from_numpy(uniforms(range(500), 0, 1)[:, 0])
    counts = Counter(draw_tokens(logits, draws, 1.0, banned=[0]).ids.tolist())
    assert set(counts) == {1, 2}
    assert counts[2] / 500 == pytest.approx(0.731, abs=0.08)


# The end of a response.


def test_stop_string_ends_a_response_and_keeps_the_token_that_completed_it():
    script = [*ids_of("x </answe"), TOKENIZER.convert_tokens_to_ids("r>!"), *ids_of("zz")]
    done = scripted(script, CONFIG)
    assert done.response_ids == script[:-2]
    assert done.text == "x </answer>!"
    assert done.finish_reason == "stop"
    assert len(done.sampler_log_probs) == len(done.response_ids)


def test_stop_string_spelled_byte_by_byte():
    done = scripted(ids_of(">a</answer>b"), CONFIG)
    assert (done.text, done.finish_reason) == (">a</answer>", "stop")


def test_eos_stays_in_the_ids_and_out_of_the_text():
    done = scripted([*ids_of("hey"), EOS, *ids_of("more")], CONFIG)
    assert done.response_ids == [*ids_of("hey"), EOS]
    assert (done.text, done.finish_reason) == ("hey", "eos")


def test_a_response_without_end_is_cut_at_max_tokens():
    done = scripted(ids_of("a" * 30), CONFIG)
    assert (done.text, done.finish_reason) == ("a" * 12, "length")


def test_a_stop_on_the_last_token_is_a_stop():
    done = scripted(ids_of("abc</answer>zz"), CONFIG)
    assert (done.text, done.finish_reason) == ("abc</answer>", "stop")


def test_min_tokens_bans_eos_and_defers_the_stop():
    short = SamplingConfig(max_tokens=12, stop=("?",), min_tokens=3)
    early_eos = scripted([EOS, EOS, EOS, EOS], short)
    assert early_eos.response_ids == [0, 0, 0, EOS]
    early_stop = scripted(ids_of("????"), short)
    assert (early_stop.text, early_stop.finish_reason) == ("???", "stop")
    stop_gone_by = scripted(ids_of("?abc"), short, tail=EOS)
    assert (stop_gone_by.text, stop_gone_by.finish_reason) == ("?abc", "eos")
    # The stop string of the first two tokens is still near when another `?` comes; that one completes nothing.
    near = scripted(ids_of("b?cc?dd"), short.model_copy(update={"stop": ("b?",)}), tail=EOS)
    assert (near.text, near.finish_reason) == ("b?cc?dd", "eos")


def test_non_ascii_stop_string():
    done = scripted(ids_of("aé。b"), SamplingConfig(max_tokens=12, stop=("。",)))
    assert (done.text, done.finish_reason) == ("aé。", "stop")


# The whole sampler.

TEXTS = ["a", "a longer prompt", "mid one", "a", "yet another prompt of its own"]


def test_a_completion_depends_on_neither_batch_nor_order():
    model = tiny_model(TOKENIZER)
    requests = requests_of(TEXTS, group=4)
    sampler = make_sampler(model, TOKENIZER, CONFIG)
    together = sampler.sample(requests, CONFIG.model_copy(update={"batch_size": 64}))
    alone = sampler.sample(requests, CONFIG.model_copy(update={"batch_size": 1}))
    backwards = sampler.sample(requests[::-1], CONFIG.model_copy(update={"batch_size": 7}))[::-1]
    for other in (alone, backwards):
        assert [item.response_ids for item in other] == [item.response_ids for item in together]
        names = [(item.problem_id, item.sample_index) for item in other]
        assert names == [(f"p{i}", g) for i in range(5) for g in range(4)]
    assert len({tuple(item.response_ids) for item in together}) == len(together)


def test_rows_that_finish_at_different_times_do_not_disturb_each_other():
    model = tiny_model(TOKENIZER)
    common = SamplingConfig(max_tokens=40, stop=tuple("abcdefghij"), batch_size=64)
    requests = requests_of(TEXTS, group=12)
    together = make_sampler(model, TOKENIZER, common).sample(requests, common)
    lengths = {len(item.response_ids) for item in together}
    alone = [make_sampler(model, TOKENIZER, common).sample([request], common)[0] for request in requests[::9]]
    assert len(lengths) > 10
    assert [item.response_ids for item in together[::9]] == [item.response_ids for item in alone]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_log_probs_and_entropy_are_the_trainers(temperature: float):
    model = tiny_model(TOKENIZER, vocab_size=300)
    config = CONFIG.model_copy(update={"temperature": temperature, "min_tokens": 4})
    completions = make_sampler(model, TOKENIZER, config).sample(requests_of(TEXTS, group=3), config)
    batch = collate([TokenSequence(item.prompt_ids, item.response_ids) for item in completions], pad_id=0)
    scores = response_log_probs(model, batch, temperature, with_entropy=True, vocab_limit=len(TOKENIZER))
    for item, log_probs, entropy, mask in zip(
        completions, scores.log_probs, scores.entropy, batch.response_mask, strict=True
    ):
        assert log_probs[mask].tolist() == pytest.approx(item.sampler_log_probs, abs=1e-4)
        assert entropy[mask].mean().item() == pytest.approx(item.mean_entropy, abs=1e-4)


def test_ids_beyond_the_tokenizer_are_never_sampled():
    model = tiny_model(TOKENIZER, vocab_size=400)
    with torch.no_grad():
        model.lm_head.weight[len(TOKENIZER) :] = model.lm_head.weight[:1] * 50
    completions = make_sampler(model, TOKENIZER, CONFIG).sample(requests_of(TEXTS, group=10), CONFIG)
    assert max(max(item.response_ids) for item in completions) < len(TOKENIZER)


def test_greedy_is_the_argmax_of_a_plain_forward_pass():
    model = tiny_model(TOKENIZER)
    config = CONFIG.model_copy(update={"temperature": 0.0, "max_tokens": 5})
    request = requests_of(["some prompt"])[0]
    ids = list(request.prompt_ids)
    with torch.no_grad():
        for _ in range(5):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert make_sampler(model, TOKENIZER, config).sample([request], config)[0].response_ids == ids[-5:]


def test_bfloat16_samples_from_a_copy_that_follows_the_weights():
    model = tiny_model(TOKENIZER)
    config = CONFIG.model_copy(update={"temperature": 0.0})
    sampler = make_sampler(model, TOKENIZER, config, "bfloat16")
    before = sampler.sample(requests_of(TEXTS), config)
    wide = make_sampler(model, TOKENIZER, config).sample(requests_of(TEXTS), config)
    assert before[0].sampler_log_probs[0] != wide[0].sampler_log_probs[0]
    model.load_state_dict(tiny_model(TOKENIZER, seed=1).state_dict())
    assert [item.response_ids for item in sampler.sample(requests_of(TEXTS), config)] == [
        item.response_ids for item in before
    ]
    sampler.update_weights(model)
    assert [item.response_ids for item in sampler.sample(requests_of(TEXTS), config)] != [
        item.response_ids for item in before
    ]
    assert model.dtype == torch.float32


def test_progress_and_training_mode():
    model = tiny_model(TOKENIZER).train()
    seen: list[tuple[int, int]] = []
    sampler = make_sampler(model, TOKENIZER, CONFIG)
    sampler.sample(requests_of(TEXTS, 4), CONFIG, lambda *point: seen.append(point))
    assert seen == [(8, 20), (16, 20), (20, 20)]
    assert model.training


def test_no_requests_give_no_completions():
    assert make_sampler(tiny_model(TOKENIZER), TOKENIZER, CONFIG).sample([], CONFIG) == []


@pytest.mark.parametrize(("prompt", "message"), [([], "has no token"), ([1] * 120, "exceed the model's 128 positions")])
def test_prompts_that_cannot_be_sampled_from_are_refused(prompt: list[int], message: str):
    sampler = make_sampler(tiny_model(TOKENIZER), TOKENIZER, CONFIG)
    with pytest.raises(ValueError, match=message):
        sampler.sample([PromptRequest("p", 0, prompt, 1)], CONFIG)


# Requests and encoding.


def test_a_problem_asked_twice_gets_new_seeds_the_second_time():
    problem = Problem(id="p", question="", prompt="ab", ground_truth="")
    requests = build_requests([problem, problem], TOKENIZER, 2, 1)
    assert [request.sample_index for request in requests] == [0, 1, 2, 3]
    assert len({request.seed for request in requests}) == 4


def test_trace_is_encoded_apart_from_its_prompt_and_ends_as_asked():
    plain = encode_trace(TOKENIZER, "a", "b")
    assert (plain.prompt_ids, plain.response_ids) == (ids_of("a"), ids_of("b"))
    assert encode_trace(TOKENIZER, "a", "b", append_eos=True).response_ids == [*ids_of("b"), EOS]


def test_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="no token"):
        encode_prompt(TOKENIZER, "")
