"""A run that was interrupted and resumed is the run that was not; models travel whole."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_loops import PROBLEMS, TOKENIZER, FragileRun, Interrupted, likes_low_letters
from tiny_models import byte_tokenizer, tiny_model
from transformers import GenerationConfig, PreTrainedModel

from alignment_core.checkpoints import LoopIdentity, read_checkpoint, write_checkpoint
from alignment_core.config import SamplingConfig
from alignment_core.models import (
    disable_dropout,
    eos_ids,
    load_model,
    load_tokenizer,
    pad_id,
    save_model,
    set_checkpointing,
)
from alignment_core.optimization import make_optimizer
from alignment_core.policy_gradient import train_grpo
from alignment_core.runs import MemoryRun
from alignment_core.sampling import build_requests, encode_trace, make_sampler
from alignment_core.sft import train_sft
from alignment_core.training_config import GRPOConfig, OptimizerConfig, SFTConfig

EXAMPLES = [encode_trace(TOKENIZER, f"{a}", f" {'so ' * a}</answer>") for a in range(10)]
# Four steps to an epoch: step 3, where the run is cut, lies within one.
COSINE = OptimizerConfig(learning_rate=1e-2, schedule="cosine")
SFT = SFTConfig(epochs=2, batch_size=3, optimizer=COSINE, validate_every=2)
SFT_STEPS = 8
GRPO = GRPOConfig(n_grpo_steps=6, rollout_batch_size=8, train_batch_size=8, group_size=4, optimizer=COSINE)
OFF_POLICY = GRPO.model_copy(update={"loss_type": "grpo_clip", "epochs_per_rollout_batch": 2, "train_batch_size": 4})


def run_sft(model: PreTrainedModel, run: MemoryRun) -> None:
    train_sft(model, TOKENIZER, EXAMPLES, SFT, run, seed=1, validate=lambda step, _: {"eval/accuracy": float(step)})


def run_grpo(model: PreTrainedModel, run: MemoryRun) -> None:
    train_grpo(model, TOKENIZER, PROBLEMS, GRPO, SamplingConfig(max_tokens=5), likes_low_letters, run, seed=1)


def run_off_policy(model: PreTrainedModel, run: MemoryRun) -> None:
    train_grpo(model, TOKENIZER, PROBLEMS, OFF_POLICY, SamplingConfig(max_tokens=5), likes_low_letters, run, seed=1)


def without_times(run: MemoryRun) -> dict[int, dict[str, float]]:
    return {
        step: {k: v for k, v in metrics.items() if not k.startswith(("time/", "memory/"))}
        for step, metrics in run.points
    }


@pytest.mark.parametrize("train", [run_sft, run_grpo, run_off_policy])
def test_an_interrupted_run_goes_on_bit_equal(train, tmp_path: Path):
    straight, whole = tiny_model(TOKENIZER), MemoryRun()
    train(straight, whole)
    with pytest.raises(Interrupted):
        train(tiny_model(TOKENIZER), FragileRun(tmp_path, dies_at=4))
    # Other initial weights: whatever the checkpoint did not bring would show.
    resumed, rest = tiny_model(TOKENIZER, seed=9), FragileRun(tmp_path)
    train(resumed, rest)
    assert rest.lines[0].split(" of ")[0].endswith("at step 3")
    assert [step for step, _ in rest.points] == list(range(4, len(whole.points) + (train is not run_sft)))
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    expected = without_times(whole)
    assert without_times(rest) == {step: expected[step] for step in without_times(rest)}


def test_no_checkpoint_after_the_last_step(tmp_path: Path):
    run_sft(tiny_model(TOKENIZER), FragileRun(tmp_path))
    assert [folder.name for folder in tmp_path.iterdir()] == [f"step-{SFT_STEPS - 1:08d}"]


def saved(tmp_path: Path, identity: LoopIdentity) -> Path:
    model = tiny_model(TOKENIZER)
    optimizer = make_optimizer(model, OptimizerConfig())
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    optimizer.step()
    write_checkpoint(tmp_path, model, optimizer, 1, identity)
    return tmp_path


IDENTITY = LoopIdentity("sft", seed=1, total=8, items=10)


def test_a_checkpoint_holds_plain_tensors_and_json_with_tied_weights_once(tmp_path: Path):
    folder = saved(tmp_path, IDENTITY)
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "optimizer.safetensors", "state.json"}
    weights, moments = load_file(folder / "model.safetensors"), load_file(folder / "optimizer.safetensors")
    assert "lm_head.weight" not in weights
    assert len(moments) == 3 * len(weights)
    assert json.loads((folder / "state.json").read_text())["step"] == 1


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path):
    folder, model = saved(tmp_path, IDENTITY), tiny_model(TOKENIZER)
    optimizer = make_optimizer(model, OptimizerConfig())
    with pytest.raises(ValueError, match="is of another run"):
        read_checkpoint(folder, model, optimizer, LoopIdentity("sft", seed=2, total=8, items=10))
    other = tiny_model(byte_tokenizer())
    other.model.extra = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"differ in model\.extra"):
        read_checkpoint(folder, other, make_optimizer(other, OptimizerConfig()), IDENTITY)


# Models in and out.


def test_model_and_tokenizer_survive_a_round_trip(tmp_path: Path):
    model = tiny_model(TOKENIZER)
    save_model(model, TOKENIZER, tmp_path / "model")
    loaded, tokenizer = load_model(tmp_path / "model", device="cpu"), load_tokenizer(tmp_path / "model")
    assert not list((tmp_path / "model").glob("*.bin"))
    for (name, one), (_, other) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert tokenizer.encode("a b </answer>") == TOKENIZER.encode("a b </answer>")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_narrow_checkpoints_become_float32_masters(tmp_path: Path):
    save_model(tiny_model(TOKENIZER).to(torch.bfloat16), TOKENIZER, tmp_path)
    assert {weight.dtype for weight in load_model(tmp_path, device="cpu").parameters()} == {torch.float32}


def test_of_a_generation_config_only_token_ids_are_kept(tmp_path: Path):
    model = tiny_model(TOKENIZER)
    save_model(model, TOKENIZER, tmp_path)
    GenerationConfig(eos_token_id=[3, 7], repetition_penalty=1.1, do_sample=True, top_k=20).save_pretrained(tmp_path)
    loaded = load_model(tmp_path, device="cpu")
    assert eos_ids(loaded, TOKENIZER) == {3, 7, TOKENIZER.eos_token_id}
    assert not {"repetition_penalty", "do_sample", "top_k"} & loaded.generation_config.to_diff_dict().keys()


def test_activations_are_recomputed_where_asked_without_a_deprecated_call(tmp_path: Path):
    save_model(tiny_model(TOKENIZER), TOKENIZER, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model = load_model(tmp_path, device="cpu")
        set_checkpointing(model, True)
        assert model.model.layers[0].gradient_checkpointing
        set_checkpointing(model, False)
    assert not model.model.layers[0].gradient_checkpointing


def test_only_the_older_names_of_transformers_5_are_called_where_they_are_all_there_is():
    model = SimpleNamespace(calls=[], is_gradient_checkpointing=True)
    model.gradient_checkpointing_enable = lambda: model.calls.append("on")
    model.gradient_checkpointing_disable = lambda: model.calls.append("off")
    set_checkpointing(model, True)
    set_checkpointing(model, False)
    assert model.calls == ["on", "off"]


def test_missing_weights_are_refused(tmp_path: Path):
    save_model(tiny_model(TOKENIZER), TOKENIZER, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the weights model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(tmp_path, device="cpu")


def test_a_path_that_is_no_folder_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="no model folder at"):
        load_model(tmp_path / "absent")


def test_dropout_is_switched_off():
    model = tiny_model(TOKENIZER)
    model.model.layers[0].self_attn.attention_dropout = 0.5
    model.extra = torch.nn.Dropout(0.5)
    disable_dropout(model)
    assert (model.model.layers[0].self_attn.attention_dropout, model.extra.p) == (0.0, 0.0)


def test_pad_id_falls_back_to_eos():
    assert TOKENIZER.pad_token_id is None
    assert pad_id(tiny_model(TOKENIZER), TOKENIZER) == TOKENIZER.eos_token_id


def test_a_padding_token_without_an_embedding_is_not_used():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    model, sampling = tiny_model(TOKENIZER), SamplingConfig(max_tokens=3)
    assert tokenizer.pad_token_id == model.config.vocab_size
    assert pad_id(model, tokenizer) == tokenizer.eos_token_id
    make_sampler(model, tokenizer, sampling).sample(build_requests(PROBLEMS, tokenizer, 1, 0), sampling)
    train_sft(model, tokenizer, EXAMPLES, SFT, MemoryRun(), 0)
