"""One draw over a large vocabulary: never an id of probability 0, the rarest at their own rate, no float64 pass."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_contract import CONFIG, TEXTS, TOKENIZER, requests_of
from tiny_models import tiny_model
from torch import Tensor

from alignment_core.decoding import BLOCK, inverse_cdf, nucleus
from alignment_core.random_draws import uniforms
from alignment_core.sampling import make_sampler

VOCABULARY = 151_936
TOKENIZER_IDS = 151_665
LARGEST = 1 - 2**-52
"""The largest draw there is."""


def skewed(seed: int = 0) -> Tensor:
    """(V,) probabilities as a language model's: a few likely ids, 1e-10 for most; none beyond the tokenizer."""
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 4
    logits[TOKENIZER_IDS:] = -torch.inf
    return logits.softmax(-1)


def drawn(weights: Tensor, draws: list[float]) -> list[int]:
    ids: list[int] = inverse_cdf(weights.expand(len(draws), -1), torch.tensor(draws, dtype=torch.float64)).tolist()
    return ids


WEIGHTS = st.one_of(st.just(0.0), st.floats(2.0**-40, 1.0, width=32))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(WEIGHTS, min_size=1, max_size=40).filter(any),
    st.sampled_from([1, 3, BLOCK // 7, BLOCK]),
    st.lists(st.one_of(st.sampled_from([0.0, LARGEST]), st.floats(0, LARGEST)), min_size=1, max_size=20),
)
def test_the_drawn_id_has_weight_and_holds_the_draw(few: list[float], spacing: int, draws: list[float]):
    # Weights apart by blocks and parts of blocks of zeros, as masked ids lie between others.
    weights = torch.zeros((len(few) - 1) * spacing + 1 + spacing // 2)
    weights[::spacing][: len(few)] = torch.tensor(few)
    exact = [Fraction(value) for value in weights.tolist()]
    total = sum(exact)
    for draw, index in zip(draws, drawn(weights, draws), strict=True):
        before = sum(exact[:index], Fraction(0))
        assert exact[index] > 0
        # Sums of a block are rounded in float32; a draw that close to a border may fall to the neighbour.
        assert (
            before / total - Fraction(1, 10**6)
            <= Fraction(draw)
            <= (before + exact[index]) / total + Fraction(1, 10**6)
        )


def test_a_padded_id_is_never_drawn_however_close_the_draw_is_to_one():
    weights = skewed()
    ends = [LARGEST, 1 - 2**-40, 1 - 2**-30, *torch.linspace(0.999999, 1, 2000, dtype=torch.float64)[:-1].tolist()]
    ids = drawn(weights, ends)
    assert max(ids) < TOKENIZER_IDS
    assert (weights[ids] > 0).all()
    assert ids[0] == TOKENIZER_IDS - 1


def test_the_rarest_ids_are_drawn_at_their_own_draws():
    """After a certain id, ids so rare that adding one to a float32 sum of 1 changes nothing."""
    weights = torch.full((VOCABULARY,), 1e-9)
    weights[7] = 1.0
    total = weights.double().sum().item()
    wanted = [100, BLOCK - 1, BLOCK, 100_000, VOCABULARY - 1]
    draws = [(1.0 + (index - 0.5) * 1e-9) / total for index in wanted]
    assert drawn(weights, draws) == pytest.approx(wanted, abs=1)
    draws = ((1.0 + np.linspace(0.01, 0.99, 3000) * VOCABULARY * 1e-9) / total).tolist()
    assert len(set(drawn(weights, draws))) == 3000
    narrow = torch.searchsorted(weights.cumsum(-1), torch.tensor(draws).float() * total, right=True)
    assert len(set(narrow.tolist())) < 1500  # what a running sum in float32 would leave of them


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_frequencies_over_a_large_vocabulary_are_the_probabilities(top_p: float):
    count, bins = 4000, 60
    weights = nucleus(skewed(1)[None], top_p)[0]
    ids = torch.tensor(drawn(weights, uniforms(range(count), 3, 1)[:, 0].tolist()))
    assert (weights[ids] > 0).all()
    # Ids in an order of their own, so that bins of equal probability mix likely and rare ones from all blocks.
    order = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(2))
    shares = weights.double() / weights.double().sum()
    of_bin = torch.empty(VOCABULARY, dtype=torch.long)
    of_bin[order] = (shares[order].cumsum(0) * bins).long().clamp(max=bins - 1)
    expected = torch.zeros(bins, dtype=torch.float64).index_add(0, of_bin, shares) * count
    found = torch.bincount(of_bin[ids], minlength=bins)
    chi_square = (((found - expected) ** 2 / expected)[expected > 0]).sum().item()
    assert chi_square < 98.3  # 99.9 % point at 59 degrees of freedom


def test_a_scan_that_is_not_monotone_to_the_last_bit_still_ends_at_an_id_of_weight(monkeypatch: pytest.MonkeyPatch):
    """As a GPU adds in another order from place to place: sums over weights of 0 that grow a little nevertheless."""
    original = Tensor.cumsum

    def scanned(one: Tensor, dim: int) -> Tensor:
        sums = original(one, dim)
        sums[..., sums.shape[-1] // 2 :] *= 1 + 2**-40
        return sums

    weights = torch.zeros(2 * BLOCK)
    weights[:3] = 1
    monkeypatch.setattr(Tensor, "cumsum", scanned)
    assert drawn(weights, [0.0, 0.5, LARGEST]) == [0, 1, 2]


def test_no_pass_over_the_vocabulary_is_in_float64(monkeypatch: pytest.MonkeyPatch):
    widened: list[int] = []
    original = Tensor.double
    monkeypatch.setattr(Tensor, "double", lambda one: widened.append(one.shape[-1]) or original(one))
    assert drawn(skewed(), [0.5]) == drawn(skewed(), [0.5])
    assert max(widened) <= BLOCK


@pytest.mark.parametrize("decoding", ["plain", "static"])
def test_a_policy_without_finite_probabilities_is_said_to_be_broken(decoding: str):
    model = tiny_model(TOKENIZER)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    config = CONFIG.model_copy(update={"decoding": decoding})
    with pytest.raises(FloatingPointError, match=r"no finite probabilities for problem .*: its weights or its"):
        make_sampler(model, TOKENIZER, config).sample(requests_of(TEXTS), config)
