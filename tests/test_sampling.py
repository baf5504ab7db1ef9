"""Sampling: the draws, the end of a response, and independence of the batch."""

from collections import Counter

import pytest
import torch
from sampler_contract import CONFIG, EOS, TEXTS, TOKENIZER, SamplerContract, ids_of, requests_of
from tiny_models import ScriptedModel, tiny_model

from alignment_core.completion_entropy import with_entropy
from alignment_core.decoding import draw_tokens, inverse_cdf, nucleus
from alignment_core.random_draws import permutation, uniforms
from alignment_core.records import Problem
from alignment_core.sampling import build_requests, encode_prompt, encode_trace, make_sampler

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


# The whole sampler.


class TestTransformers(SamplerContract):
    """The contract, by the transformers sampler."""

    def sampler(self, model, config=CONFIG, compute_dtype="float32"):
        return make_sampler(model, TOKENIZER, config, compute_dtype)

    def scripted(self, script, config=CONFIG, tail=1):
        sampler = make_sampler(ScriptedModel(TOKENIZER, 2, script, tail), TOKENIZER, config)
        return sampler.sample(requests_of(["ab"]), config)[0]


def test_progress_is_told_batch_by_batch():
    seen: list[tuple[int, int]] = []
    make_sampler(tiny_model(TOKENIZER), TOKENIZER, CONFIG).sample(
        requests_of(TEXTS, 4), CONFIG, lambda *point: seen.append(point)
    )
    assert seen == [(8, 20), (16, 20), (20, 20)]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_entropy_can_be_had_afterwards(temperature: float):
    model = tiny_model(TOKENIZER, vocab_size=300)
    config = CONFIG.model_copy(update={"temperature": temperature, "stop": tuple("abcdefgh")})
    done = make_sampler(model, TOKENIZER, config).sample(requests_of(TEXTS, 3), config)
    bare = [item.model_copy(update={"mean_entropy": None}) for item in done]
    again = with_entropy(bare, model, TOKENIZER, temperature)
    assert [item.mean_entropy for item in again] == pytest.approx([item.mean_entropy for item in done], abs=1e-5)
    assert with_entropy(done, model, TOKENIZER, 5.0) == done
    assert [item.model_copy(update={"mean_entropy": None}) for item in again] == bare


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
