"""Supervised fine-tuning: the loss by hand, its invariances, the order of the data, the guards."""

import pytest
import torch
from tiny_loops import EXAMPLES, TOKENIZER, series
from tiny_models import tiny_model
from transformers import PreTrainedModel

from alignment_core.batching import TokenSequence
from alignment_core.config import SamplingConfig
from alignment_core.epochs import batch_indices, validation_due
from alignment_core.optimization import StepGuard, apply_update, learning_rate_at, make_optimizer
from alignment_core.runs import MemoryRun
from alignment_core.sampling import PromptRequest, encode_trace, make_sampler
from alignment_core.sft import train_sft
from alignment_core.training_config import OptimizerConfig, SFTConfig

CONFIG = SFTConfig(
    epochs=2, batch_size=5, optimizer=OptimizerConfig(learning_rate=1e-2, schedule="cosine"), validate_every=2
)


def trained(config: SFTConfig = CONFIG, examples: list[TokenSequence] = EXAMPLES) -> tuple[PreTrainedModel, MemoryRun]:
    model, run = tiny_model(TOKENIZER), MemoryRun()
    train_sft(model, TOKENIZER, examples, config, run, seed=3)
    return model, run


def mean_nll(model: PreTrainedModel, examples: list[TokenSequence]) -> float:
    """Token mean of -log p over the responses, from the full logits of one sequence at a time."""
    total, count = 0.0, 0
    for example in examples:
        ids = torch.tensor([example.prompt_ids + example.response_ids])
        with torch.no_grad():
            log_probs = model(ids).logits.log_softmax(-1)[0]
        for position in range(len(example.prompt_ids), ids.shape[1]):
            total -= log_probs[position - 1, ids[0, position]].item()
            count += 1
    return total / count


def test_loss_is_the_token_mean_over_the_batchs_responses():
    _, run = trained()
    first = [EXAMPLES[i] for i in batch_indices(len(EXAMPLES), 5, 0, 3)]
    assert series(run, "train/loss")[0] == pytest.approx(mean_nll(tiny_model(TOKENIZER), first), rel=1e-5)
    assert series(run, "train/tokens")[0] == sum(len(example.response_ids) for example in first)


@pytest.mark.parametrize("tokens", [1, 40, 60])
def test_micro_batch_size_changes_nothing(tokens: int):
    whole, run_whole = trained()
    parts, run_parts = trained(CONFIG.model_copy(update={"micro_batch_tokens": tokens}))
    for name in ("train/loss", "train/grad_norm"):
        assert series(run_parts, name) == pytest.approx(series(run_whole, name), rel=2e-4)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-4)


def test_gradient_norm_counts_the_tied_head_once():
    model = tiny_model(TOKENIZER)
    example = EXAMPLES[0]
    ids = torch.tensor([example.prompt_ids + example.response_ids])
    labels = ids.clone()
    labels[0, : len(example.prompt_ids)] = -100
    model(ids, labels=labels).loss.backward()
    expected = torch.stack([weight.grad.norm() for weight in model.parameters()]).norm().item()
    _, run = trained(CONFIG.model_copy(update={"batch_size": 1, "epochs": 1}), [example])
    assert series(run, "train/grad_norm") == [pytest.approx(expected, rel=1e-4)]


def test_ids_beyond_the_tokenizer_get_no_probability_and_no_gradient():
    padded = tiny_model(TOKENIZER, vocab_size=400)
    before = padded.lm_head.weight[len(TOKENIZER) :].clone()
    train_sft(padded, TOKENIZER, EXAMPLES, CONFIG, MemoryRun(), seed=3)
    assert torch.equal(padded.lm_head.weight[len(TOKENIZER) :], before)


def test_dropout_is_off_in_the_loop():
    model = tiny_model(TOKENIZER)
    model.model.layers[0].self_attn.attention_dropout = 0.5
    run = MemoryRun()
    train_sft(model, TOKENIZER, EXAMPLES, CONFIG, run, seed=3)
    assert series(run, "train/loss") == series(trained()[1], "train/loss")


def test_a_document_is_predicted_from_its_second_token_on():
    document = TokenSequence([], TOKENIZER.encode("some text"))
    split = TokenSequence(document.response_ids[:1], document.response_ids[1:])
    _, run = trained(CONFIG.model_copy(update={"epochs": 1}), [document])
    assert series(run, "train/tokens") == [8]
    assert series(run, "train/loss")[0] == pytest.approx(mean_nll(tiny_model(TOKENIZER), [split]), rel=1e-5)


def test_overfitting_one_example_makes_the_model_say_it():
    example = encode_trace(TOKENIZER, "ask", " tell</answer>")
    model, run = trained(
        CONFIG.model_copy(update={"epochs": 40, "optimizer": OptimizerConfig(learning_rate=2e-2)}), [example]
    )
    sampling = SamplingConfig(max_tokens=30, temperature=0.0)
    request = PromptRequest("p", 0, example.prompt_ids, 1)
    done = make_sampler(model, TOKENIZER, sampling).sample([request], sampling)[0]
    assert (done.text, done.finish_reason) == (" tell</answer>", "stop")
    assert series(run, "train/loss")[-1] < 0.1


def test_each_step_has_its_own_rate_of_the_schedule():
    _, run = trained()
    expected = [learning_rate_at(CONFIG.optimizer, step, 6) for step in range(6)]
    assert series(run, "train/learning_rate") == pytest.approx(expected)
    assert len(set(expected)) == 6


def test_every_epoch_shows_every_example_once_in_another_order():
    epochs = [[index for step in range(3) for index in batch_indices(12, 5, 3 * e + step, 1)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]
    assert [len(batch_indices(12, 5, step, 1)) for step in range(3)] == [5, 5, 2]


def test_validation_is_asked_at_the_start_at_its_interval_and_at_the_end():
    run, asked = MemoryRun(), []

    def validate(step: int, model: PreTrainedModel) -> dict[str, float]:
        asked.append(step)
        return {"eval/accuracy": step / 10}

    train_sft(tiny_model(TOKENIZER), TOKENIZER, EXAMPLES[:7], CONFIG, run, 0, validate=validate)
    assert asked == [0, 2, 4]
    assert [step for step, _ in run.points] == [0, 1, 2, 3, 4]
    assert series(run, "eval/accuracy") == [0, 0.2, 0.4]
    assert [validation_due(step, 5, 2) for step in range(1, 6)] == [False, True, False, True, True]


def test_too_long_examples_are_left_out_aloud():
    long = encode_trace(TOKENIZER, "x" * 30, "y" * 30)
    _, run = trained(CONFIG.model_copy(update={"max_length": 40}), [*EXAMPLES[:2], long])
    assert run.lines[0] == "left out 1 of 3 examples: empty, or longer than 40 tokens"
    assert len(run.points) == 2
    with pytest.raises(ValueError, match="none of 1 examples fits"):
        trained(CONFIG.model_copy(update={"max_length": 40}), [long])


def test_an_example_of_exactly_the_limit_is_kept():
    longest = max(example.length for example in EXAMPLES)
    _, run = trained(CONFIG.model_copy(update={"max_length": longest, "epochs": 1}))
    assert sum(series(run, "train/tokens")) == sum(len(example.response_ids) for example in EXAMPLES)
    assert [line for line in run.lines if "left out" in line] == []


def test_a_broken_weight_stops_the_run_before_any_update():
    model = tiny_model(TOKENIZER)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    with pytest.raises(FloatingPointError, match="loss is nan at step 1"):
        train_sft(model, TOKENIZER, EXAMPLES, CONFIG, MemoryRun(), 0)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, before)


def test_a_gradient_that_is_not_finite_changes_no_weight():
    model = tiny_model(TOKENIZER)
    before = [weight.clone() for weight in model.parameters()]
    optimizer = make_optimizer(model, CONFIG.optimizer)
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, torch.inf)
    with pytest.raises(FloatingPointError, match="gradient norm is inf at step 1"):
        apply_update(model, optimizer, CONFIG.optimizer, 0, 10, StepGuard(MemoryRun(), 1, EXAMPLES))
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


def test_narrow_weights_are_refused():
    with pytest.raises(ValueError, match="is not float32"):
        make_optimizer(tiny_model(TOKENIZER).to(torch.bfloat16), OptimizerConfig())


def test_bfloat16_compute_leaves_float32_weights_and_still_learns():
    model, run = tiny_model(TOKENIZER), MemoryRun()
    train_sft(model, TOKENIZER, EXAMPLES, CONFIG.model_copy(update={"epochs": 8}), run, 0, compute_dtype="bfloat16")
    losses = series(run, "train/loss")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert losses[-1] < losses[0] / 2


def test_weight_decay_spares_norms_and_biases():
    optimizer = make_optimizer(tiny_model(TOKENIZER), OptimizerConfig(weight_decay=0.1))
    decayed = {weight.dim() for group in optimizer.param_groups if group["weight_decay"] for weight in group["params"]}
    every = {weight.dim() for group in optimizer.param_groups for weight in group["params"]}
    assert (decayed, every) == ({2}, {1, 2})


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("constant", 0, 0.5),
        ("constant", 1, 1.0),
        ("constant", 9, 1.0),
        ("linear", 2, 1.0),
        ("linear", 6, 0.5),
        ("cosine", 2, 1.0),
        ("cosine", 4, 0.5 + 0.5 * 0.70710678),
        ("cosine", 6, 0.5),
        ("cosine", 10, 0.0),
    ],
)
def test_learning_rate_by_hand(schedule: str, step: int, expected: float):
    config = OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup_steps=2)
    assert learning_rate_at(config, step, 10) == pytest.approx(expected)
