"""The tiny model and its tokenizer: any text round-trips, seeds decide the weights, nothing global moves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from alignment_core.arithmetic import generate_splits
from alignment_core.config import ArithmeticConfig, ScratchModelConfig
from alignment_core.corpus import pretraining_documents
from alignment_core.model_size import scratch_size
from alignment_core.prompts import read_template
from alignment_core.scratch import END_OF_TEXT, build_model, train_tokenizer

TINY = read_template("tiny")
SMALL = ScratchModelConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, documents=1500)
DOCUMENTS = pretraining_documents(SMALL, ArithmeticConfig(), TINY, read_template("plain"), 0)
TOKENIZER = train_tokenizer(DOCUMENTS, 512)


def test_tokenizer_is_small_deterministic_and_ends_with_one_token():
    assert 257 < len(TOKENIZER) <= 512
    assert train_tokenizer(DOCUMENTS, 512).get_vocab() == TOKENIZER.get_vocab()
    assert TOKENIZER.eos_token == TOKENIZER.pad_token == END_OF_TEXT
    assert TOKENIZER.encode(END_OF_TEXT) == [TOKENIZER.eos_token_id]


@given(st.text())
def test_any_text_round_trips(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_tags_round_trip_and_digits_stay_single():
    text = " 12-2=10 cards. </think> <answer> 10 </answer>"
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    tokens = TOKENIZER.convert_ids_to_tokens(TOKENIZER.encode("1234"))
    assert tokens == ["1", "2", "3", "4"]
    assert "</think> <answer>" in TOKENIZER.decode(TOKENIZER.encode("a </think> <answer> 1"))


def test_prompt_and_response_tokenize_apart_as_they_do_together():
    train, _, _ = generate_splits(ArithmeticConfig(train=100, dev=1, test=1), TINY, 0)
    for problem in train:
        together = TOKENIZER.encode(problem.prompt + problem.trace)
        assert TOKENIZER.encode(problem.prompt) + TOKENIZER.encode(problem.trace) == together


def test_tokenizer_survives_saving(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert loaded.encode(DOCUMENTS[0]) == TOKENIZER.encode(DOCUMENTS[0])
    assert (loaded.eos_token_id, loaded.pad_token_id) == (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id)


def test_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(ValueError, match="vocab_size 256 is too small: 257"):
        train_tokenizer(DOCUMENTS, 256)


def test_model_has_the_shape_of_the_recipe():
    model = build_model(ScratchModelConfig(), TOKENIZER, 0)
    # embedding V·128 (tied head), 3 layers of q, k, v, o, three MLP matrices, biases and norms, final norm
    layer = 128 * 128 + 128 + 2 * (128 * 64 + 64) + 128 * 128 + 3 * 128 * 384 + 2 * 128
    assert sum(p.numel() for p in model.parameters()) == len(TOKENIZER) * 128 + 3 * layer + 128
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (model.config.eos_token_id, model.config.pad_token_id) == (TOKENIZER.eos_token_id, TOKENIZER.eos_token_id)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_initial_weights_have_the_configured_spread():
    for spread in (0.05, 0.02):
        config = ScratchModelConfig(initializer_range=spread)
        weights = build_model(config, TOKENIZER, 0).model.layers[0].mlp.up_proj.weight
        assert weights.std().item() == pytest.approx(spread, rel=0.03)


def test_seed_decides_the_weights_and_the_global_state_stays():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_model(SMALL, TOKENIZER, 5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = build_model(SMALL, TOKENIZER, 5).state_dict(), build_model(SMALL, TOKENIZER, 6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_no_dropout_makes_training_mode_deterministic():
    model = build_model(SMALL, TOKENIZER, 0).train()
    ids = torch.tensor([TOKENIZER.encode(DOCUMENTS[0])])
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of num_attention_heads 3"):
        build_model(ScratchModelConfig(num_attention_heads=3), TOKENIZER, 0)


def test_the_forecast_of_its_size_is_exact_where_the_vocabulary_is_full():
    shape = SMALL.model_copy(update={"vocab_size": len(TOKENIZER)})
    assert scratch_size(shape).parameters == sum(
        weight.numel() for weight in build_model(shape, TOKENIZER, 0).parameters()
    )
