"""Packed rows: the same log-probs, entropies, losses and gradients as one sequence at a time, whatever the packing."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import byte_tokenizer, tiny_model
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from alignment_core import attention
from alignment_core.attention import KERNELS, choose_kernel, is_packed, prepare_attention, unsupported
from alignment_core.batching import TokenSequence, collate, pack, packed_batches, plan_batches
from alignment_core.engine import Engine
from alignment_core.logprobs import response_log_probs
from alignment_core.models import disable_dropout, set_checkpointing
from alignment_core.training_config import EngineConfig, SFTConfig

TOKENIZER = byte_tokenizer()
SHAPE = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "eos_token_id": TOKENIZER.eos_token_id,
    "bos_token_id": None,
    "pad_token_id": None,
}


def qwen2() -> PreTrainedModel:
    return tiny_model(TOKENIZER)


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False)).eval()


def qwen3() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=True)).eval()


def sequences() -> list[TokenSequence]:
    """Three prompts, two of them shared, not in order; an empty response and one of a single token among them."""
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(1, 200, (size,), generator=generator).tolist() for size in (5, 9, 2)]
    lengths = ((0, 6), (1, 1), (0, 13), (2, 9), (1, 4), (0, 0), (0, 2), (2, 17))
    return [
        TokenSequence(prompts[prompt], torch.randint(1, 200, (size,), generator=generator).tolist())
        for prompt, size in lengths
    ]


def weighted(log_probs: Tensor, offset: int) -> Tensor:
    """A loss whose gradient differs in every position; `offset` is the number of the sequence in its batch."""
    steps = torch.arange(log_probs.shape[-1], dtype=log_probs.dtype)
    return (log_probs * torch.sin(steps + 0.7 * offset)).sum() / 50


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


def assert_close(ours: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 2e-6) -> None:
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (ours[name] - gradient).abs().max() <= tolerance * (1 + gradient.abs().max()), name


@pytest.mark.parametrize("make", [qwen2, llama, qwen3])
def test_packed_equals_one_sequence_at_a_time(make: Callable[[], PreTrainedModel]):
    model, items = make(), sequences()
    expected: list[tuple[Tensor, Tensor]] = []
    for index, item in enumerate(items):
        batch = collate([item], 0)
        scores = response_log_probs(model, batch, 0.8, with_entropy=True)
        mask = batch.response_mask[0]
        expected.append((scores.log_probs[0][mask].detach(), scores.entropy[0][mask]))
        weighted(scores.log_probs[0][mask], index).backward()
    alone = gradients(model)
    assert prepare_attention(model, "auto", "float32") == f"attention: {KERNELS['sdpa']}"
    batch = collate(items, 0)
    scores = response_log_probs(model, batch, 0.8, with_entropy=True)
    total = torch.zeros(())
    for index, (log_probs, entropy) in enumerate(expected):
        mask = batch.response_mask[index]
        torch.testing.assert_close(scores.log_probs[index][mask], log_probs, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(scores.entropy[index][mask], entropy, rtol=1e-5, atol=2e-6)
        total = total + weighted(scores.log_probs[index][mask], index)
    total.backward()
    assert_close(gradients(model), alone)


def test_no_position_sees_or_scores_across_a_boundary():
    model = qwen2()
    prepare_attention(model, "auto", "float32")
    items = sequences()
    before = response_log_probs(model, collate(items, 0)).log_probs
    # Every token of every other sequence changes: nothing of this one may.
    for kept in (0, 3, 7):
        changed = [
            item if index == kept else TokenSequence([7] * len(item.prompt_ids), [9] * len(item.response_ids))
            for index, item in enumerate(items)
        ]
        after = response_log_probs(model, collate(changed, 0)).log_probs
        torch.testing.assert_close(after[kept], before[kept], rtol=1e-6, atol=1e-6)


def test_every_predictor_stands_right_before_its_token_in_its_own_sequence():
    items = [TokenSequence([10, 11], [12, 13]), TokenSequence([20], [21]), TokenSequence([10, 11], [14, 15, 16])]
    row = pack(items)
    assert row.input_ids.tolist() == [[10, 11, 12, 20, 14, 15]]
    assert row.position_ids.tolist() == [[0, 1, 2, 0, 2, 3]]
    assert row.predictors.tolist() == [1, 2, 3, 1, 4, 5]
    assert row.layout.lengths == (3, 1, 4)
    assert row.layout.offsets.tolist() == [0, 3, 4, 8]
    assert row.layout.spread.tolist() == [0, 1, 2, 3, 0, 1, 4, 5]
    assert row.input_ids[0][row.layout.spread].tolist() == [10, 11, 12, 20, 10, 11, 14, 15]
    assert row.layout.spread[row.layout.gather].tolist() == list(range(6))


def test_without_shared_prompts_the_row_is_the_sequences_end_to_end():
    row = pack([TokenSequence([1, 2], [3]), TokenSequence([4], [5, 6])])
    assert (row.layout.spread, row.layout.gather) == (None, None)
    assert row.input_ids.tolist() == [[1, 2, 4, 5]]


def test_a_shared_prompt_runs_once_and_a_batch_has_no_padding():
    items = sequences()
    seen: list[int] = []
    model = qwen2()
    prepare_attention(model, "auto", "float32")
    model.model.layers[0].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    response_log_probs(model, collate(items, 0))
    said = sum(max(len(item.response_ids) - 1, 0) for item in items)
    assert seen == [5 + 9 + 2 + said]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), max_size=30), st.integers(1, 60))
def test_packed_batches_keep_every_index_once_within_the_budget(shape: list[tuple[int, int]], budget: int):
    items = [TokenSequence([prompt] * (prompt + 1), [5] * size) for prompt, size in shape]
    batches = packed_batches(items, budget)
    assert sorted(index for rows in batches for index in rows) == list(range(len(items)))
    for rows in batches:
        assert len(rows) == 1 or pack([items[index] for index in rows]).input_ids.numel() <= budget


def test_packed_batches_by_hand():
    items = [TokenSequence([1, 1], [2] * size) for size in (3, 4)] + [TokenSequence([7], [8])]
    items.append(TokenSequence([1, 1], [2]))
    assert packed_batches(items, 9) == [[0, 1], [3, 2]]
    assert packed_batches(items, 100) == [[0, 1, 3, 2]]
    assert packed_batches(items, 1) == [[0], [1], [3], [2]]
    assert plan_batches(items, 12, packed=False) == [[1, 0], [3, 2]]
    alike = [TokenSequence([1] * 4, [2] * 3) for _ in range(5)]
    assert packed_batches(alike, 10) == [[0, 1], [2, 3], [4]], "each row holds the prompt anew"
    with pytest.raises(ValueError, match="must be positive"):
        packed_batches(items, 0)


def test_what_belongs_together_stays_in_one_row():
    """Pairs: 2 + (3 + 1), 4 + (1 + 2), 2 (held already in the first row) + (2 + 2), one of 20 tokens alone."""
    first, second, last = [1, 1], [3] * 4, [9]
    items = [
        TokenSequence(prompt, [2] * size)
        for prompt, sizes in ((first, (3, 1)), (second, (1, 2)), (first, (2, 2)), (last, (1, 18)))
        for size in sizes
    ]
    assert packed_batches(items, 10, together=2) == [[0, 1, 4, 5], [2, 3], [6, 7]]
    assert packed_batches(items, 9, together=2) == [[0, 1], [4, 5], [2, 3], [6, 7]]
    assert packed_batches(items, 17, together=2) == [[0, 1, 4, 5, 2, 3], [6, 7]]
    # Padded, each is two rows of its longer sequence: 10, 12, 8 and 38 tokens.
    assert plan_batches(items, 24, packed=False, together=2) == [[6, 7], [2, 3, 0, 1], [4, 5]]
    # Different prompts within a unit are both counted.
    apart = [TokenSequence([1] * 5, [2]), TokenSequence([3] * 5, [2])]
    assert packed_batches([*apart, *apart], 23, together=2) == [[0, 1, 2, 3]]
    assert packed_batches([*apart, *apart], 13, together=2) == [[0, 1], [2, 3]]


def test_packed_pairs_of_mixed_lengths_take_fewer_micro_batches_than_padded_ones():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(5, 120, (80,), generator=generator).tolist()
    items = [TokenSequence([index // 2] * 40, [5] * size) for index, size in enumerate(sizes)]
    packed, padded = (plan_batches(items, 1000, packed, 2) for packed in (True, False))
    assert (len(packed), len(padded)) == (7, 11)
    assert sum(pack([items[index] for index in rows]).input_ids.numel() for rows in packed) < 1000 * len(packed)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_loss_and_gradient_are_those_of_any_micro_batch_size(packed: bool, checkpointing: bool):
    items = [item for item in sequences() if item.response_ids]
    count = sum(len(item.response_ids) for item in items)

    def total(budget: int, attention_setting: str) -> tuple[float, dict[str, Tensor], int]:
        model = qwen2()
        model.train()
        disable_dropout(model)
        config = EngineConfig(
            micro_batch_tokens=budget, attention=attention_setting, recompute_activations=checkpointing
        )
        engine = Engine(model, TOKENIZER, config)
        loss, parts = 0.0, 0
        for _, batch in engine.micro_batches(items):
            share = -engine.scores(batch).log_probs.sum() / count
            engine.backward(share)
            loss, parts = loss + share.item(), parts + 1
        set_checkpointing(model, False)
        return loss, gradients(model), parts

    whole, expected, one = total(10_000, "padded")
    assert one == 1
    sizes = set()
    for budget in (1, 20, 45, 10_000):
        loss, found, parts = total(budget, "auto" if packed else "padded")
        sizes.add(parts)
        assert loss == pytest.approx(whole, rel=1e-5)
        assert_close(found, expected, 5e-6)
    assert sizes >= {1, len(items)}


def test_a_prepared_model_still_decodes_with_a_cache_and_a_padding_mask():
    model = qwen2()
    ids = torch.tensor([[3, 4, 5, 6], [0, 0, 7, 8]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(ids, **options)
    prepare_attention(model, "auto", "float32")
    assert torch.equal(model.generate(ids, **options), plain)
    assert is_packed(model)
    assert "attn" not in model.config.to_json_string()


def test_padded_is_a_choice_and_can_be_gone_back_to():
    model = qwen2()
    prepare_attention(model, "auto", "float32")
    line = prepare_attention(model, "padded", "float32")
    assert line == "attention: padded batches, transformers' own attention (as the settings ask for)"
    assert not is_packed(model)
    assert SFTConfig().attention == "auto"


def test_a_model_that_cannot_pack_says_so_and_runs_padded():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=len(TOKENIZER)))
    line = prepare_attention(model, "auto", "float32")
    assert "padded batches" in line
    assert "gpt2 is none of llama" in line
    assert not is_packed(model)
    sliding = qwen2()
    sliding.config.layer_types = ["full_attention", "sliding_attention"]
    assert "full attention" in (unsupported(sliding) or "")


def test_the_kernel_follows_device_and_type(monkeypatch: pytest.MonkeyPatch):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    capability = {"now": (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability["now"])
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    assert choose_kernel(cpu, torch.bfloat16) == "sdpa"
    assert choose_kernel(cuda, torch.float32) == "sdpa"
    assert choose_kernel(cuda, torch.bfloat16) == "torch-varlen"
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: name)
    assert choose_kernel(cuda, torch.float16) == "flash-attn"
    capability["now"] = (7, 5)
    assert choose_kernel(cuda, torch.float16) == "sdpa"


def test_torch_varlen_gets_offsets_a_causal_window_and_grouped_heads(monkeypatch: pytest.MonkeyPatch):
    """The call itself runs on a GPU only: here its arguments, and what it returns, go through a stand-in."""
    model, items, calls = qwen2(), sequences(), []
    expected = response_log_probs(model, collate(items, 0)).log_probs

    def varlen(query: Tensor, key: Tensor, value: Tensor, *rest: object, **options: object) -> Tensor:
        calls.append((rest, options))
        lengths = tuple(rest[0].diff().tolist())
        layout = attention.Layout(lengths, rest[0])
        assert rest[2] == max(lengths)
        return attention._by_sequence(query, key, value, layout, options["scale"])

    prepare_attention(model, "auto", "float32")
    monkeypatch.setattr(attention, "choose_kernel", lambda device, dtype: "torch-varlen")
    monkeypatch.setattr(attention, "_varlen", lambda: (varlen, True))
    got = response_log_probs(model, collate(items, 0)).log_probs
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-6)
    assert [options["window_size"] for _, options in calls] == [(-1, 0)] * 2
    assert all(options["enable_gqa"] for _, options in calls)
    monkeypatch.setattr(attention, "_varlen", lambda: (varlen, False))
    got = response_log_probs(model, collate(items, 0)).log_probs
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-6)
    assert "enable_gqa" not in calls[-1][1]


def test_dropout_in_a_packed_row_is_refused():
    model = qwen2().train()
    model.model.layers[0].self_attn.attention_dropout = 0.5
    prepare_attention(model, "auto", "float32")
    with pytest.raises(ValueError, match="neither dropout nor"):
        response_log_probs(model, collate(sequences(), 0))
