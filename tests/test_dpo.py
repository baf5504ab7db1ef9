"""Direct preference optimization: the loss against a plain one, its invariances, exact resume, the stage."""

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_loops import TOKENIZER, FragileRun, Interrupted, MovedPolicy, series
from tiny_models import tiny_model
from transformers import PreTrainedModel

from alignment_core import dpo, engine
from alignment_core.batching import TokenSequence, pack
from alignment_core.config import SamplingConfig
from alignment_core.dpo import PAIR_MEANS, TokenPair, encode_pair, train_dpo
from alignment_core.engine import Engine
from alignment_core.epochs import batch_indices, optimizer_steps
from alignment_core.models import load_model, load_tokenizer, save_model
from alignment_core.records import PreferencePair, Problem, write_jsonl
from alignment_core.runs import MemoryRun
from alignment_core.stage_config import DPOStage
from alignment_core.stages import dpo as stage
from alignment_core.training_config import DPOConfig, OptimizerConfig

STOP = ("</answer>",)
TEXTS = [
    PreferencePair(prompt=f"{a}+{b}=", chosen_response=f" {a + b}</answer>", rejected_response=" no" * (1 + a))
    for a in range(4)
    for b in range(3)
]
PAIRS = [encode_pair(TOKENIZER, pair, STOP) for pair in TEXTS]
CONFIG = DPOConfig(
    epochs=2,
    batch_size=5,
    beta=0.3,
    optimizer=OptimizerConfig(learning_rate=3e-3),
    validate_every=2,
    attention="padded",
)


def trained(config: DPOConfig = CONFIG, pairs: list[TokenPair] = PAIRS) -> tuple[PreTrainedModel, MemoryRun]:
    model, run = tiny_model(TOKENIZER), MemoryRun()
    train_dpo(model, TOKENIZER, pairs, config, run, seed=3)
    return model, run


def plain_log_prob(model: PreTrainedModel, sequence: TokenSequence) -> torch.Tensor:
    """Sum of response log-probs from full logits of one sequence, in float64."""
    ids = torch.tensor(sequence.prompt_ids + sequence.response_ids)
    log_probs = model(ids[None]).logits[0, :-1].double().log_softmax(-1)
    return log_probs.gather(1, ids[1:, None])[len(sequence.prompt_ids) - 1 :].sum()


def plain_step(pairs: list[TokenPair], smoothing: float = 0.0) -> tuple[float, float]:
    """Loss and gradient norm of the first step over `pairs`, with the policy moved off the reference."""
    policy, reference = tiny_model(TOKENIZER, seed=1), tiny_model(TOKENIZER)
    loss = torch.zeros((), dtype=torch.float64)
    for pair in pairs:
        with torch.no_grad():
            expected = plain_log_prob(reference, pair.chosen) - plain_log_prob(reference, pair.rejected)
        margin = CONFIG.beta * (plain_log_prob(policy, pair.chosen) - plain_log_prob(policy, pair.rejected) - expected)
        sigmoid = torch.sigmoid(margin)
        loss = loss - ((1 - smoothing) * sigmoid.log() + smoothing * (1 - sigmoid).log()) / len(pairs)
    loss.backward()
    norm = torch.stack([weight.grad.norm() for weight in policy.parameters()]).norm()
    return loss.item(), norm.item()


@pytest.mark.parametrize("attention", ["padded", "auto"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradient_are_the_plain_ones(smoothing: float, attention: str):
    model = tiny_model(TOKENIZER)
    run = MovedPolicy(model)
    config = CONFIG.model_copy(
        update={"batch_size": 12, "epochs": 1, "label_smoothing": smoothing, "attention": attention}
    )
    train_dpo(model, TOKENIZER, PAIRS, config, run, seed=3)
    loss, norm = plain_step(PAIRS, smoothing)
    assert abs(loss - math.log(2)) > 0.01
    assert series(run, "train/loss") == [pytest.approx(loss, rel=1e-4)]
    assert series(run, "train/grad_norm") == [pytest.approx(norm, rel=1e-3)]


def test_at_the_start_policy_and_reference_are_one():
    _, run = trained()
    assert series(run, "train/loss")[0] == pytest.approx(math.log(2), abs=1e-5)
    for name in ("chosen_reward", "rejected_reward", "reward_margin"):
        assert series(run, f"train/{name}")[0] == pytest.approx(0, abs=1e-4)
    first = [PAIRS[row] for row in batch_indices(12, 5, 0, 3)]
    model = tiny_model(TOKENIZER)
    for side in ("chosen", "rejected"):
        mean = sum(plain_log_prob(model, getattr(pair, side)).item() for pair in first) / 5
        assert series(run, f"train/{side}_log_probs")[0] == pytest.approx(mean, rel=1e-5)


def test_training_prefers_the_chosen_responses():
    _, run = trained(CONFIG.model_copy(update={"epochs": 6}))
    assert series(run, "train/implicit_accuracy")[-1] == 1.0
    assert series(run, "train/loss")[-1] < 0.3
    margins = [
        c - r for c, r in zip(series(run, "train/chosen_reward"), series(run, "train/rejected_reward"), strict=True)
    ]
    assert series(run, "train/reward_margin") == pytest.approx(margins)
    assert margins[-1] > 1


@pytest.mark.parametrize("attention", ["padded", "auto"])
@pytest.mark.parametrize("tokens", [1, 60, 100])
def test_micro_batch_size_and_packing_change_nothing(tokens: int, attention: str):
    whole, run_whole = trained()
    parts, run_parts = trained(CONFIG.model_copy(update={"micro_batch_tokens": tokens, "attention": attention}))
    for name in ("loss", "grad_norm", "reward_margin", "tokens"):
        expected = series(run_whole, f"train/{name}")
        assert series(run_parts, f"train/{name}") == pytest.approx(expected, rel=2e-3, abs=1e-4)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-3)


def test_packed_pairs_have_the_loss_and_gradient_of_one_pair_at_a_time(monkeypatch: pytest.MonkeyPatch):
    """For any budget: whole pairs, packed, within it, and fewer micro-batches than padding to the longest takes."""
    rows = [3, 0, 11, 7, 1, 2, 9]
    # A prompt that two pairs share, apart in the batch, and a pair alone longer than the smaller budgets.
    pairs = [*PAIRS, TokenPair(PAIRS[0].chosen, TokenSequence(PAIRS[0].chosen.prompt_ids, [5] * 40))]
    rows.append(12)
    alone = tiny_model(TOKENIZER, seed=1)
    losses = [plain_pair_loss(alone, tiny_model(TOKENIZER), pairs[row]) for row in rows]
    (torch.stack(losses).sum() / len(rows)).backward()
    plans: list[list[list[int]]] = []
    original = engine.plan_batches
    monkeypatch.setattr(engine, "plan_batches", lambda *given: plans.append(original(*given)) or plans[-1])
    parts = []
    for budget in (1, 30, 45, 70, 100, 1000):
        model = tiny_model(TOKENIZER)
        config = CONFIG.model_copy(update={"micro_batch_tokens": budget, "attention": "auto"})
        learner = dpo._Learner(Engine(model, TOKENIZER, config), pairs, config)
        model.load_state_dict(tiny_model(TOKENIZER, seed=1).state_dict())
        metrics = learner.accumulate(rows)
        assert metrics["train/loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
        for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=2e-6)
        sequences, plan = learner.sequences(rows), plans[-1]
        assert sorted(index for part in plan for index in part) == list(range(2 * len(rows)))
        assert all(part[1::2] == [index + 1 for index in part[::2]] for part in plan)
        held = [pack([sequences[index] for index in part]).input_ids.numel() for part in plan]
        assert all(size <= budget or len(part) == 2 for size, part in zip(held, plan, strict=True))
        parts.append((len(plan), len(original(sequences, budget, False, 2))))
    assert parts[0] == (8, 8)
    assert parts[-1] == (1, 1)
    assert all(packed <= padded for packed, padded in parts)
    assert sum(packed for packed, _ in parts) < sum(padded for _, padded in parts)


def plain_pair_loss(policy: PreTrainedModel, reference: PreTrainedModel, pair: TokenPair) -> torch.Tensor:
    """-log sigmoid of one pair's margin, from full logits."""
    with torch.no_grad():
        start = plain_log_prob(reference, pair.chosen) - plain_log_prob(reference, pair.rejected)
    margin = plain_log_prob(policy, pair.chosen) - plain_log_prob(policy, pair.rejected) - start
    return -torch.nn.functional.logsigmoid(CONFIG.beta * margin)


def test_a_pair_beyond_the_models_positions_or_vocabulary_is_refused():
    long = TokenPair(TokenSequence([1], [2] * 130), TokenSequence([1], [3]))
    with pytest.raises(ValueError, match=r"131 tokens exceeds the model's 128 positions"):
        trained(pairs=[*PAIRS, long])
    with pytest.raises(ValueError, match=r"holds token 999, and the model has embeddings"):
        trained(pairs=[*PAIRS, TokenPair(TokenSequence([1], [999]), TokenSequence([1], [3]))])


def test_every_metric_is_there_every_step_and_the_last_batch_is_its_own():
    _, run = trained()
    assert [step for step, _ in run.points] == list(range(1, optimizer_steps(12, CONFIG) + 1))
    others = {"train/grad_norm", "train/learning_rate", "train/tokens", "time/update", "memory/peak_gb"}
    for _, metrics in run.points:
        assert {f"train/{name}" for name in PAIR_MEANS} | others <= metrics.keys()
    last = [PAIRS[row] for row in batch_indices(12, 5, 2, 3)]
    assert len(last) == 2
    assert series(run, "train/tokens")[2] == sum(pair.response_tokens for pair in last)


def test_an_interrupted_run_goes_on_bit_equal(tmp_path: Path):
    straight, whole = trained()
    with pytest.raises(Interrupted):
        train_dpo(tiny_model(TOKENIZER), TOKENIZER, PAIRS, CONFIG, FragileRun(tmp_path, 4), seed=3)
    # The start policy again, as a stage loads it: it is the reference.
    resumed, rest = tiny_model(TOKENIZER), FragileRun(tmp_path)
    train_dpo(resumed, TOKENIZER, PAIRS, CONFIG, rest, seed=3)
    assert [step for step, _ in rest.points] == [4, 5, 6]
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    for (_, ours), (_, theirs) in zip(rest.points, whole.points[3:], strict=True):
        assert {k: v for k, v in ours.items() if k.startswith("train/")} == {
            k: v for k, v in theirs.items() if k.startswith("train/")
        }


def test_pairs_that_cannot_teach_are_left_out_aloud():
    same = TokenPair(PAIRS[0].chosen, PAIRS[0].chosen)
    empty = TokenPair(PAIRS[0].chosen, TokenSequence(PAIRS[0].chosen.prompt_ids, []))
    longest = max(pair.length for pair in PAIRS[:3])
    config = CONFIG.model_copy(update={"max_length": longest, "epochs": 1})
    _, run = trained(config, [*PAIRS[:3], same, empty])
    assert f"left out 2 of 5 pairs: empty, equal, or longer than {longest} tokens" in run.lines
    with pytest.raises(ValueError, match="none of 2 pairs can be used"):
        trained(config, [same, empty])
    with pytest.raises(ValueError, match=r"raise dpo\.max_length 5"):
        trained(config.model_copy(update={"max_length": 5}))


def test_texts_get_an_end_and_sampled_ids_stay_as_they_are():
    eos = TOKENIZER.eos_token_id
    pair = encode_pair(TOKENIZER, TEXTS[0], STOP)
    assert pair.chosen.prompt_ids == pair.rejected.prompt_ids == TOKENIZER.encode("0+0=")
    assert pair.chosen.response_ids == TOKENIZER.encode(" 0</answer>")
    assert pair.rejected.response_ids == [*TOKENIZER.encode(" no"), eos]
    sampled = TEXTS[0].model_copy(update={"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, eos]})
    pair = encode_pair(TOKENIZER, sampled, STOP)
    assert (pair.chosen, pair.rejected) == (TokenSequence([1, 2], [3]), TokenSequence([1, 2], [4, eos]))
    with pytest.raises(ValueError, match="come together: give all three, or none"):
        PreferencePair(prompt="p", chosen_response="a", rejected_response="b", chosen_ids=[1])


def test_a_broken_weight_stops_the_run_before_any_update():
    model = tiny_model(TOKENIZER)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    with pytest.raises(FloatingPointError, match="loss is nan at step 1"):
        train_dpo(model, TOKENIZER, PAIRS, CONFIG, MemoryRun(), 0)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, before)


def test_the_stage_reads_a_model_and_pairs_and_writes_a_model(tmp_path: Path):
    for name in ("model", "pairs", "problems", "out"):
        (tmp_path / name).mkdir()
    start = tiny_model(TOKENIZER, vocab_size=300)
    save_model(start, TOKENIZER, tmp_path / "model" / "model")
    lines = [pair.model_dump(exclude_none=True) for pair in TEXTS]
    assert lines[0].keys() == {"prompt", "chosen_response", "rejected_response"}
    (tmp_path / "pairs" / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    dev = Problem(id="d", question="q", prompt="1+1=", ground_truth="2")
    write_jsonl(tmp_path / "problems" / "dev.jsonl", [dev])
    config = DPOStage(dpo=CONFIG, sampling=SamplingConfig(max_tokens=4), seed=3)
    inputs = {name: tmp_path / name for name in ("model", "pairs", "problems")}
    run = MemoryRun()
    stage.run(config, inputs, tmp_path / "out", run)
    assert len(series(run, "eval/accuracy")) == 4
    tokenizer = load_tokenizer(tmp_path / "model" / "model")
    train_dpo(start, tokenizer, [encode_pair(tokenizer, pair, STOP) for pair in TEXTS], CONFIG, MemoryRun(), seed=3)
    for one, other in zip(
        load_model(tmp_path / "out" / "model", device="cpu").parameters(), start.parameters(), strict=True
    ):
        assert torch.equal(one, other)
