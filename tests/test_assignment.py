"""The assignment's functions: signatures, shapes and values as a course adapter would meet them."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

import alignment_core
from alignment_core import assignment

WORDS = ["<eos>", "<bos>", "What", "is", "two", "and", "three", "?", "five", "six", "Paris", ":", "#", "!"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of words between spaces whose padding is its EOS, as in Qwen2.5-Math."""
    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="#"))
    raw.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>")


def qwen(seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return Qwen2ForCausalLM(config).double()


def test_tokenize_prompt_and_output_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    result = assignment.tokenize_prompt_and_output(["What is two ?", "Paris :"], ["five", "six <eos>"], tokenizer)
    assert result["input_ids"].tolist() == [[2, 3, 4, 7], [10, 11, 9, 0]]
    assert result["labels"].tolist() == [[3, 4, 7, 8], [11, 9, 0, 0]]
    assert result["response_mask"].tolist() == [[False, False, False, True], [False, True, True, False]]


def test_tokenize_works_without_a_padding_token(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>")
    assert bare.pad_token_id is None
    assert assignment.tokenize_prompt_and_output(["two"], ["five"], bare)["labels"].tolist() == [[8]]
    with pytest.raises(ValueError, match="end-of-text"):
        assignment.tokenize_prompt_and_output(
            ["two"], ["five"], PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
        )


def test_tokenize_refuses_lists_of_different_length(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="2 prompts but 1 outputs"):
        assignment.tokenize_prompt_and_output(["two", "three"], ["five"], tokenizer)


def test_real_tokenizer_tokenizes_prompt_and_output_apart(shared_data: Path) -> None:
    real = PreTrainedTokenizerFast.from_pretrained(shared_data / "tokenizers" / "qwen2.5")
    # Together these would merge at the seam; apart they must not.
    prompt, output = "The answer is th", "ree."
    result = assignment.tokenize_prompt_and_output([prompt, "A"], [output, "B"], real)
    apart = real(prompt)["input_ids"] + real(output)["input_ids"]
    assert apart != real(prompt + output)["input_ids"]
    assert result["input_ids"][0].tolist() == apart[:-1]
    assert result["labels"][0].tolist() == apart[1:]
    assert int(result["response_mask"][0].sum()) == len(real(output)["input_ids"])
    assert int(result["response_mask"][1].sum()) == 1


def test_compute_entropy_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3.0)], [1000.0, 0.0]]])
    expected = torch.tensor([[math.log(2), 2 * math.log(2) - 0.75 * math.log(3), 0.0]])
    torch.testing.assert_close(assignment.compute_entropy(logits), expected)


def test_compute_entropy_agrees_with_numpy_and_widens_bfloat16() -> None:
    logits = np.random.default_rng(0).normal(scale=5, size=(3, 4, 11))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    got = assignment.compute_entropy(torch.tensor(logits))
    np.testing.assert_allclose(got.numpy(), -(p * np.log(p)).sum(-1), rtol=1e-10)
    assert assignment.compute_entropy(torch.zeros(1, 2, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_get_response_log_probs_scores_every_position() -> None:
    model = qwen(0)
    ids = torch.randint(0, 64, (2, 7), generator=torch.Generator().manual_seed(0))
    scores = model(input_ids=ids[:, :-1]).logits.log_softmax(-1)
    got = assignment.get_response_log_probs(model, ids[:, :-1], ids[:, 1:], return_token_entropy=True)
    torch.testing.assert_close(got["log_probs"], scores.gather(-1, ids[:, 1:, None]).squeeze(-1))
    torch.testing.assert_close(got["token_entropy"], -(scores.exp() * scores).sum(-1))
    assert set(assignment.get_response_log_probs(model, ids[:, :-1], ids[:, 1:], False)) == {"log_probs"}


MASK = torch.tensor([[True, True, False], [True, False, False]])


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_sft_step_by_hand(kind: torch.dtype) -> None:
    log_probs = torch.tensor([[-1.0, -2.0, -9.0], [-4.0, -9.0, -9.0]], requires_grad=True)
    loss, metadata = assignment.sft_microbatch_train_step(log_probs, MASK.to(kind), 2, normalize_constant=4.0)
    # Mean over 2 sequences of (3/4, 4/4), over 2 accumulation steps.
    assert loss.item() == pytest.approx(1.75 / 4)
    assert metadata["token_nll"].item() == pytest.approx(7 / 3)
    torch.testing.assert_close(log_probs.grad, -MASK.float() / 16)


@pytest.mark.parametrize(
    ("loss_type", "arguments"),
    [
        ("no_baseline", {"raw_rewards": torch.tensor([[1.0], [-2.0]])}),
        ("reinforce_with_baseline", {"advantages": torch.tensor([[1.0], [-2.0]])}),
        ("grpo_clip", {"advantages": torch.tensor([[1.0], [-2.0]]), "cliprange": 0.2}),
        ("grpo_no_clip", {"advantages": torch.tensor([[1.0], [-2.0]])}),
        ("gspo", {"advantages": torch.tensor([[1.0], [-2.0]]), "cliprange": (3e-4, 4e-4)}),
    ],
)
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_grpo_step_gradient_by_hand(loss_type: str, arguments: dict[str, object], kind: torch.dtype) -> None:
    log_probs = torch.tensor([[-1.0, -2.0, -9.0], [-4.0, -9.0, -9.0]], requires_grad=True)
    if loss_type.startswith("g"):
        arguments = {**arguments, "old_log_probs": log_probs.detach().clone()}
    loss, _ = assignment.grpo_microbatch_train_step(log_probs, MASK.to(kind), 2, loss_type, **arguments)
    # -A / (tokens of the sequence x 2 sequences x 2 steps), the same on-policy for every type.
    expected = torch.tensor([[-1 / 8, -1 / 8, 0.0], [2 / 4, 0.0, 0.0]])
    torch.testing.assert_close(log_probs.grad, expected)
    value = (-1.0 + 2.0) / 4 if loss_type.startswith("g") else (1.5 - 8.0) / 4
    assert loss.item() == pytest.approx(value)


def test_grpo_step_reports_the_clip_over_response_tokens() -> None:
    log_probs = torch.log(torch.tensor([[0.9, 0.5, 0.9], [0.1, 0.9, 0.9]])).requires_grad_()
    old = torch.log(torch.full((2, 3), 0.5))
    _, metadata = assignment.grpo_microbatch_train_step(
        log_probs, MASK, 1, "grpo_clip", advantages=torch.tensor([[1.0], [-1.0]]), old_log_probs=old, cliprange=0.2
    )
    assert metadata["clip_fraction_high"].item() == pytest.approx(1 / 3)
    assert metadata["clip_fraction_low"].item() == pytest.approx(1 / 3)
    assert metadata["ratio_mean"].item() == pytest.approx((1.8 + 1.0 + 0.2) / 3)


@pytest.mark.parametrize(
    ("loss_type", "arguments", "message"),
    [
        ("no_baseline", {"advantages": torch.ones(1, 1)}, "needs raw_rewards"),
        ("reinforce_with_baseline", {"raw_rewards": torch.ones(1, 1)}, "needs advantages"),
        ("grpo_clip", {"advantages": torch.ones(1, 1), "cliprange": 0.2}, "needs old_log_probs"),
    ],
)
def test_policy_gradient_loss_names_what_is_missing(loss_type: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assignment.compute_policy_gradient_loss(torch.zeros(1, 2), loss_type, **arguments)


def test_group_normalized_rewards_by_hand() -> None:
    def reward_fn(response: str, truth: str) -> dict[str, float]:
        right = float(response == truth)
        return {"reward": right, "format_reward": 1.0, "answer_reward": right}

    advantages, raw, metadata = assignment.compute_group_normalized_rewards(
        reward_fn, ["4", "5", "7", "7"], ["4", "4", "7", "7"], 2, 0.0, normalize_by_std=True
    )
    assert raw.tolist() == [1.0, 0.0, 1.0, 1.0]
    # Within the first group: +-1/2 over sqrt(1/2).
    torch.testing.assert_close(advantages, torch.tensor([0.5**0.5, -(0.5**0.5), 0.0, 0.0]))
    assert metadata["reward_mean"] == 0.75
    assert metadata["reward_uniform_groups"] == 0.5
    assert metadata["format_reward_mean"] == 1.0
    for responses, truths, size, message in (
        (["4"] * 4, ["4"] * 4, 3, "groups of 3"),
        ([], [], 2, "0 responses do not split"),
        (["4"] * 4, ["4"] * 3, 2, "4 responses but 3 ground truths"),
    ):
        with pytest.raises(ValueError, match=message):
            assignment.compute_group_normalized_rewards(reward_fn, responses, truths, size, 0.0, True)


def test_log_generations_by_hand() -> None:
    rewards = [{"reward": r, "format_reward": 1.0, "answer_reward": r} for r in (1.0, 0.0)]
    rows, summary = assignment.log_generations(
        ["p1", "p2"], ["r1", "r2"], ["g1", "g2"], rewards, [[1.0, 2.0], [0.0, 0.0, 0.0, 2.0]]
    )
    assert rows[0] == {
        "prompt": "p1",
        "response": "r1",
        "ground_truth": "g1",
        "reward": 1.0,
        "format_reward": 1.0,
        "answer_reward": 1.0,
        "mean_token_entropy": 1.5,
        "response_length": 2,
    }
    assert summary == {
        "mean_response_length": 3.0,
        "mean_response_length_correct": 2.0,
        "mean_response_length_incorrect": 4.0,
        "mean_token_entropy": pytest.approx(5 / 6),
    }


def test_log_generations_leaves_out_means_over_nothing() -> None:
    wrong = {"reward": 0.0, "format_reward": 0.0, "answer_reward": 0.0}
    _, summary = assignment.log_generations(["p"], ["r"], ["g"], [wrong], [[1.0]])
    assert "mean_response_length_correct" not in summary
    assert assignment.log_generations([], [], [], [], []) == ([], {})


@pytest.fixture
def instruction_file(tmp_path: Path) -> Path:
    rows = [{"prompt": "What is two", "response": "five"}, {"prompt": "Paris", "response": "six !", "source": "x"}]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_packed_dataset_by_hand(tokenizer: PreTrainedTokenizerFast, instruction_file: Path) -> None:
    dataset = assignment.get_packed_sft_dataset(
        tokenizer, instruction_file, 3, shuffle=False, template="{instruction} ? {response}"
    )
    # What is two ? five <eos> Paris ? six ! -> 2 3 4 7 8 0 10 7 9 13
    assert [row["input_ids"].tolist() for row in dataset] == [[2, 3, 4], [7, 8, 0], [10, 7, 9]]
    assert [row["labels"].tolist() for row in dataset] == [[3, 4, 7], [8, 0, 10], [7, 9, 13]]


def test_packed_dataset_takes_a_template_file_or_its_own(
    tokenizer: PreTrainedTokenizerFast, instruction_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "template.txt"
    file.write_text("{instruction} ? {response}\n")
    by_file = assignment.get_packed_sft_dataset(tokenizer, instruction_file, 3, shuffle=False, template=file)
    by_text = assignment.get_packed_sft_dataset(
        tokenizer, instruction_file, 3, shuffle=False, template="{instruction} ? {response}"
    )
    assert torch.equal(by_file.input_ids, by_text.input_ids)
    own = assignment.get_packed_sft_dataset(tokenizer, str(instruction_file), 3, shuffle=False)
    assert len(own) > len(by_file)
    with pytest.raises(ValueError, match="once each"):
        assignment.get_packed_sft_dataset(tokenizer, instruction_file, 3, shuffle=False, template="{response}")


def test_packed_dataset_shuffles_documents_by_seed(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"prompt": word, "response": "!"}) + "\n" for word in WORDS[2:12]))
    plain, first, again, other = (
        assignment.get_packed_sft_dataset(tokenizer, path, 2, shuffle, template="{instruction} {response}", seed=seed)
        for shuffle, seed in ((False, 0), (True, 0), (True, 0), (True, 1))
    )
    assert torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.input_ids, plain.input_ids)
    assert not torch.equal(first.input_ids, other.input_ids)


def test_iterate_batches_is_one_seeded_epoch(tokenizer: PreTrainedTokenizerFast, instruction_file: Path) -> None:
    dataset = assignment.get_packed_sft_dataset(tokenizer, instruction_file, 1, shuffle=False)

    def firsts(shuffle: bool, seed: int = 0) -> list[int]:
        batches = assignment.iterate_batches(dataset, 4, shuffle, seed)
        assert len(batches) == math.ceil(len(dataset) / 4)
        return [token for batch in batches for token in batch["labels"].flatten().tolist()]

    ordered = dataset.labels.flatten().tolist()
    state = torch.random.get_rng_state()
    assert firsts(shuffle=False) == ordered
    assert firsts(shuffle=True) == firsts(shuffle=True) != ordered
    assert sorted(firsts(shuffle=True, seed=1)) == sorted(ordered)
    assert torch.equal(torch.random.get_rng_state(), state)


def sum_of_log_probs(model: Qwen2ForCausalLM, ids: list[int], start: int) -> Tensor:
    scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(scores[t - 1, ids[t]] for t in range(start, len(ids)))


def test_dpo_loss_is_that_of_summed_response_log_probs_with_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    policy, reference = qwen(0), qwen(1)
    graph: list[bool] = []
    reference.model.register_forward_hook(lambda *_: graph.append(torch.is_grad_enabled()))
    loss = assignment.compute_per_instance_dpo_loss(
        policy, reference, tokenizer, 0.5, "What is two", "five", "six !", template="{instruction} ? {response}"
    )
    # What is two ? | five <eos>   and   What is two ? | six ! <eos>
    chosen, rejected = [2, 3, 4, 7, 8, 0], [2, 3, 4, 7, 9, 13, 0]
    margin = sum(
        sign * (sum_of_log_probs(policy, ids, 4) - sum_of_log_probs(reference, ids, 4))
        for sign, ids in ((1, chosen), (-1, rejected))
    )
    assert graph[0] is False
    assert loss.shape == ()
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.5 * margin.item())), rel=1e-9)
    loss.backward()
    assert policy.lm_head.weight.grad.any()
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_dpo_loss_of_the_reference_itself_is_log_two(tokenizer: PreTrainedTokenizerFast) -> None:
    model = qwen(0)
    loss = assignment.compute_per_instance_dpo_loss(model, model, tokenizer, 0.5, "What is two", "five", "six")
    assert loss.item() == pytest.approx(math.log(2))


def test_package_names_load_lazily_and_all_exist() -> None:
    bare = "assert 'torch' not in sys.modules"
    code = f"import sys, alignment_core; {bare}; alignment_core.derive_seed; {bare}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(alignment_core.__file__).parents[1])
    for name in alignment_core._HOME:
        assert getattr(alignment_core, name) is not None
    assert set(alignment_core._HOME) <= set(dir(alignment_core))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = alignment_core.nothing
