"""The chunked head: a gradient known beforehand saves its second pass, and its memory grows with nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_logprobs import VOCAB, a_batch, gradients, qwen, weighted
from torch import nn

from alignment_core import logprobs
from alignment_core.logprobs import CHUNK_BYTES, chunk_rows, gradient_of, response_log_probs


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one at every walk over the chunks of logits."""
    passes: list[int] = []
    walk = logprobs._Chunks.__iter__
    monkeypatch.setattr(logprobs._Chunks, "__iter__", lambda chunks: passes.append(1) or walk(chunks))
    return passes


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("biased", [False, True])
def test_a_gradient_known_beforehand_saves_the_second_pass_and_changes_nothing(
    temperature: float, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = qwen(tied=not biased), a_batch()
    if biased:
        model.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, VOCAB, dtype=torch.float64))
    plain = response_log_probs(model, batch, temperature, vocab_limit=50, chunk_tokens=5).log_probs
    expected = gradients(model, weighted(plain))
    # As gradient_of does, in float64: the very gradient that will come back.
    known = torch.autograd.grad(weighted(leaf := torch.zeros_like(plain, requires_grad=True)), leaf)[0]
    passes = count_passes(monkeypatch)
    got = response_log_probs(
        model, batch, temperature, with_entropy=True, vocab_limit=50, chunk_tokens=5, expected_gradient=known
    )
    ours = gradients(model, weighted(got.log_probs))
    assert len(passes) == 1
    torch.testing.assert_close(got.log_probs, plain, rtol=1e-12, atol=1e-12)
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-10, atol=1e-11, msg=name)


def test_a_wrong_guess_of_the_gradient_costs_a_pass_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = qwen(), a_batch()
    expected = gradients(model, weighted(response_log_probs(model, batch).log_probs))
    passes = count_passes(monkeypatch)
    wrong = torch.ones(batch.labels.shape, dtype=torch.float64)
    log_probs = response_log_probs(model, batch, expected_gradient=wrong).log_probs
    value = weighted(log_probs)
    model.zero_grad()
    value.backward(retain_graph=True)
    assert len(passes) == 2
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-10, atol=1e-11, msg=name)


def test_a_second_backward_pass_over_a_known_gradient_is_right_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = qwen(dtype=torch.float32), a_batch()
    known = gradient_of(weighted, batch.response_mask)
    passes = count_passes(monkeypatch)
    value = weighted(response_log_probs(model, batch, expected_gradient=known).log_probs)
    model.zero_grad()
    value.backward(retain_graph=True)
    once = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    value.backward()
    assert len(passes) == 2
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, 2 * once[name], rtol=1e-4, atol=1e-4, msg=name)


def test_a_known_gradient_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = qwen(dtype=torch.float32), a_batch()
    known = gradient_of(weighted, batch.response_mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = response_log_probs(model, batch)
        expected = gradients(model, weighted(plain.log_probs))
        passes = count_passes(monkeypatch)
        got = response_log_probs(model, batch, expected_gradient=known)
    ours = gradients(model, weighted(got.log_probs))
    assert len(passes) == 1
    for name, gradient in expected.items():
        assert (ours[name] - gradient).norm() <= 0.01 * gradient.norm(), name


def test_a_known_gradient_is_not_made_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = qwen(), a_batch()
    monkeypatch.setattr(logprobs, "_HeadGradient", None)
    with torch.no_grad():
        response_log_probs(model, batch, expected_gradient=torch.ones(batch.labels.shape, dtype=torch.float64))


MEMORY = """
import resource, sys, time, torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from alignment_core.batching import TokenSequence, collate
from alignment_core.logprobs import response_log_probs
torch.set_num_threads(1)
way, vocabulary, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
model = Qwen2ForCausalLM(Qwen2Config(**shape, vocab_size=vocabulary, tie_word_embeddings=True))
batch = collate([TokenSequence([1] * 4, [5] * (tokens // 4))] * 4, 0)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, began = peak(), time.perf_counter()
if way == "chunked":
    log_probs = response_log_probs(model, batch).log_probs
else:
    log_probs = model(batch.input_ids).logits.log_softmax(-1).gather(-1, batch.labels[..., None])[..., 0]
(-log_probs[batch.response_mask].mean()).backward()
print(peak() - before - model.lm_head.weight.numel() * 4 / 2**20, time.perf_counter() - began)
"""


def megabytes(way: str, vocabulary: int, tokens: int) -> float:
    """Peak memory of one forward and backward pass in a process of its own, above model and weight gradient."""
    command = [sys.executable, "-c", MEMORY, way, str(vocabulary), str(tokens)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240, check=True)
    return float(done.stdout.split()[0])


@pytest.mark.slow
def test_peak_memory_is_flat_in_vocabulary_and_length_where_the_plain_computation_grows() -> None:
    small, large, longer = (megabytes("chunked", *size) for size in ((32_768, 512), (152_064, 512), (152_064, 2048)))
    plain = megabytes("plain", 152_064, 512)
    assert max(large, longer) < small + 60
    assert large < 0.25 * plain


@pytest.mark.parametrize("vocabulary", [512, 32_768, 152_064])
def test_the_chunks_memory_does_not_grow_with_the_vocabulary(vocabulary: int) -> None:
    rows = chunk_rows(torch.device("cpu"), vocabulary, torch.float32)
    assert CHUNK_BYTES["cpu"] / 2 < rows * vocabulary * 4 <= CHUNK_BYTES["cpu"]
    assert chunk_rows(torch.device("cpu"), 10**9, torch.float32) == 1
