"""Chunked log-probs and entropies against the plain full-logits computation: values, gradients, memory."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from alignment_core.batching import Batch, TokenSequence, collate
from alignment_core.logprobs import entropy_from_logits, response_log_probs

VOCAB = 64
EOS = 0


def qwen(tied: bool = True, dtype: torch.dtype = torch.float64) -> Qwen2ForCausalLM:
    """A two-layer model with weights large enough for distributions far from uniform."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        pad_token_id=None,
    )
    return Qwen2ForCausalLM(config).to(dtype)


def a_batch() -> Batch:
    """Four sequences of 22 response tokens in all; EOS inside a prompt, as a label and as padding."""
    generator = torch.Generator().manual_seed(1)
    sequences = []
    for prompt, response in ((3, 6), (5, 9), (2, 1), (4, 5)):
        ids = torch.randint(1, 48, (prompt + response,), generator=generator).tolist()
        sequences.append(TokenSequence([EOS, *ids[1:prompt]], [*ids[prompt:], EOS]))
    return collate(sequences, pad_id=EOS)


def plain_scores(
    model: nn.Module, batch: Batch, temperature: float = 1.0, vocab_limit: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies from all logits at once, zero outside the mask."""
    logits = model(input_ids=batch.input_ids).logits / temperature
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if vocab_limit is not None:
        logits = logits.masked_fill(torch.arange(logits.shape[-1]) >= vocab_limit, -torch.inf)
    scores = logits.log_softmax(-1)
    log_probs = scores.gather(-1, batch.labels.unsqueeze(-1)).squeeze(-1)
    entropy = -(scores.exp() * scores.masked_fill(scores == -torch.inf, 0)).sum(-1)
    return log_probs.masked_fill(~batch.response_mask, 0), entropy.masked_fill(~batch.response_mask, 0)


def weighted(log_probs: Tensor) -> Tensor:
    """A scalar whose gradient differs in every position and sign."""
    weights = torch.linspace(-2, 3, log_probs.numel(), dtype=log_probs.dtype, device=log_probs.device)
    return (log_probs.flatten() * weights).sum()


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    value.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


class LogitWatch(TorchDispatchMode):
    """Watches every operation for (rows, V) results, transposed weights apart: most rows, and the types."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor) and tensor.shape[-1:] == (VOCAB,) and tensor.shape != (32, VOCAB):
                self.rows = max(self.rows, tensor.numel() // VOCAB)
                self.dtypes.add(tensor.dtype)
        return result


@pytest.mark.parametrize("chunk", [1, 7, 22, 1000])
@pytest.mark.parametrize(("temperature", "vocab_limit"), [(1.0, None), (0.6, None), (1.7, 50)])
@pytest.mark.parametrize("tied", [True, False])
def test_values_and_gradients_equal_the_full_computation(
    chunk: int, temperature: float, vocab_limit: int | None, tied: bool
) -> None:
    model, batch = qwen(tied), a_batch()
    got = response_log_probs(model, batch, temperature, with_entropy=True, vocab_limit=vocab_limit, chunk_tokens=chunk)
    expected, expected_entropy = plain_scores(model, batch, temperature, vocab_limit)
    torch.testing.assert_close(got.log_probs, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.entropy, expected_entropy, rtol=1e-12, atol=1e-12)
    ours, plain = gradients(model, weighted(got.log_probs)), gradients(model, weighted(expected))
    assert ours.keys() == plain.keys()
    assert ("lm_head.weight" in ours) is not tied
    for name, gradient in plain.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-10, atol=1e-11, msg=name)


def test_float32_agrees_to_rounding() -> None:
    model, batch = qwen(dtype=torch.float32), a_batch()
    got = response_log_probs(model, batch, with_entropy=True, chunk_tokens=7)
    expected, entropy = plain_scores(qwen(), batch)
    assert got.log_probs.dtype == torch.float32
    torch.testing.assert_close(got.log_probs.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.entropy.double(), entropy, rtol=1e-5, atol=1e-5)


def test_a_head_with_a_bias() -> None:
    model, batch = qwen(tied=False), a_batch()
    model.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, VOCAB, dtype=torch.float64))
    got = response_log_probs(model, batch, vocab_limit=50, chunk_tokens=5).log_probs
    expected, _ = plain_scores(model, batch, vocab_limit=50)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    ours, plain = gradients(model, weighted(got)), gradients(model, weighted(expected))
    torch.testing.assert_close(ours["lm_head.bias"], plain["lm_head.bias"], rtol=1e-10, atol=1e-12)
    assert torch.equal(ours["lm_head.bias"][50:], torch.zeros(14, dtype=torch.float64))


def test_another_architecture() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=VOCAB)).double().eval()
    got = response_log_probs(model, a_batch()).log_probs
    torch.testing.assert_close(got, plain_scores(model, a_batch())[0], rtol=1e-10, atol=1e-10)


def test_each_sequence_scores_as_it_does_alone() -> None:
    model, batch = qwen(), a_batch()
    together = response_log_probs(model, batch).log_probs
    for row in range(len(batch.labels)):
        length = int(batch.response_mask[row].nonzero().max()) + 1
        alone = Batch(
            batch.input_ids[[row], :length], batch.labels[[row], :length], batch.response_mask[[row], :length]
        )
        torch.testing.assert_close(response_log_probs(model, alone).log_probs[0], together[row, :length])


def test_scores_are_zero_outside_the_mask_and_entropy_has_no_gradient() -> None:
    scores = response_log_probs(qwen(), a_batch(), with_entropy=True)
    outside = ~a_batch().response_mask
    assert not scores.log_probs[outside].any()
    assert not scores.entropy[outside].any()
    assert (scores.entropy[~outside] > 0).all()
    assert scores.log_probs.requires_grad
    assert not scores.entropy.requires_grad
    assert response_log_probs(qwen(), a_batch()).entropy is None


def test_a_batch_without_response_tokens_gives_zeros_and_zero_gradients() -> None:
    model = qwen()
    batch = collate([TokenSequence([1, 2, 3], [])], EOS)
    scores = response_log_probs(model, batch, with_entropy=True)
    assert not scores.log_probs.any()
    assert not any(gradient.any() for gradient in gradients(model, scores.log_probs.sum()).values())


def test_no_gradient_where_none_is_wanted() -> None:
    model, batch = qwen(), a_batch()
    with torch.no_grad():
        assert not response_log_probs(model, batch).log_probs.requires_grad
    model.get_input_embeddings().weight.requires_grad_(False)
    response_log_probs(model, batch).log_probs.sum().backward()
    assert model.lm_head.weight.grad is None
    assert model.model.layers[0].mlp.up_proj.weight.grad.any()


def test_autocast_keeps_float32_scores_and_master_gradients() -> None:
    model, batch = qwen(dtype=torch.float32), a_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with LogitWatch() as watch:
            scores = response_log_probs(model, batch, with_entropy=True, chunk_tokens=7)
        expected, entropy = plain_scores(model, batch)
    assert scores.log_probs.dtype == scores.entropy.dtype == torch.float32
    torch.testing.assert_close(scores.log_probs, expected, rtol=0, atol=0.05)
    torch.testing.assert_close(scores.entropy, entropy, rtol=0, atol=0.05)
    assert watch.dtypes == {torch.bfloat16, torch.float32}
    ours, plain = gradients(model, weighted(scores.log_probs)), gradients(model, weighted(expected))
    for name, gradient in plain.items():
        assert ours[name].dtype == torch.float32
        assert (ours[name] - gradient).norm() < 0.03 * gradient.norm(), name


def test_a_bfloat16_model_normalizes_in_float32() -> None:
    model = qwen(dtype=torch.bfloat16)
    batch = a_batch()
    got = response_log_probs(model, batch, chunk_tokens=1000).log_probs
    assert got.dtype == torch.float32
    logits = model(input_ids=batch.input_ids).logits
    in_bfloat16 = logits.log_softmax(-1).gather(-1, batch.labels.unsqueeze(-1)).squeeze(-1)
    mask = batch.response_mask
    wide = logits.float().log_softmax(-1).gather(-1, batch.labels.unsqueeze(-1)).squeeze(-1)
    assert (got - wide)[mask].abs().mean() < 0.3 * (in_bfloat16 - wide)[mask].abs().mean()


def test_no_more_than_a_chunk_of_logits_and_an_eighth_exists_forward_or_backward() -> None:
    model, batch = qwen(), a_batch()
    with LogitWatch() as plain:
        plain_scores(model, batch)
    assert plain.rows == batch.labels.numel()
    with LogitWatch() as chunked:
        response_log_probs(model, batch, with_entropy=True, chunk_tokens=5).log_probs.sum().backward()
    assert chunked.rows == 5 + 1


def test_attention_sees_no_mask_and_no_cache() -> None:
    model, seen = qwen(), []
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs), with_kwargs=True)
    response_log_probs(model, a_batch())
    assert [kwargs["attention_mask"] for kwargs in seen] == [None, None]
    assert all(kwargs.get("past_key_values") is None for kwargs in seen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "must be positive"),
        ({"chunk_tokens": 0}, "must be positive"),
        ({"vocab_limit": 20}, "sample with the same limit"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        response_log_probs(qwen(), a_batch(), **arguments)


def test_models_the_chunked_head_would_misread_are_refused() -> None:
    model = qwen()
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        response_log_probs(model, a_batch())
    with pytest.raises(ValueError, match="causal language model"):
        response_log_probs(nn.Linear(2, 2), a_batch())


def test_entropy_from_logits_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, math.log(3.0), -torch.inf, -torch.inf], [900.0, 0.0, 0.0, 0.0]])
    two = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    torch.testing.assert_close(entropy_from_logits(logits), torch.tensor([math.log(4), two, 0.0]))


def test_entropy_agrees_with_numpy_and_widens_bfloat16() -> None:
    logits = np.random.default_rng(0).normal(scale=5, size=(3, 4, 11))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(entropy_from_logits(torch.tensor(logits)).numpy(), -(p * np.log(p)).sum(-1), rtol=1e-10)
    assert entropy_from_logits(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_agrees_with_the_full_computation() -> None:
    model, batch = qwen(dtype=torch.float32), a_batch()
    exact, _ = plain_scores(copy.deepcopy(model), batch)
    moved = model.cuda()
    got = response_log_probs(moved, batch.to("cuda"), chunk_tokens=7).log_probs
    torch.testing.assert_close(got.cpu(), exact, rtol=1e-3, atol=1e-3)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        narrow = response_log_probs(moved, batch.to("cuda"), chunk_tokens=7).log_probs
    assert narrow.dtype == torch.float32
    narrow.sum().backward()
    assert moved.lm_head.weight.grad.dtype == torch.float32
