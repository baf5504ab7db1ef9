"""A small finished root for the kill tests, the specs of the stages they kill, and how two artifacts are compared."""

from pathlib import Path
from typing import Any

from waiting import matching

from alignment_core.config import ArithmeticConfig, DataConfig, SamplingConfig, ScratchModelConfig
from alignment_core.events import read_events
from alignment_core.prompts import read_template
from alignment_core.records import ArtifactRef
from alignment_core.stage import StageSpec, make_spec, run_stage
from alignment_core.stage_config import GRPOStage, PrepareStage, PretrainStage, SFTStage
from alignment_core.store import Store
from alignment_core.training_config import GRPOConfig, OptimizerConfig, SFTConfig

ARITHMETIC = ArithmeticConfig(
    max_total=7, step_shares=(1.0,), train=96, dev=8, test=8, wrong_trace_share=0.0, unformatted_trace_share=0.0
)
SAMPLING = SamplingConfig(max_tokens=40, batch_size=64)


def fill_root(store: Store) -> dict[str, StageSpec]:
    """Problems, a scratch model, and a model that answers some of them; specs of `sft`, `grpo` and `grpo-long`."""
    template, plain = read_template("tiny"), read_template("plain")
    data = DataConfig(kind="arithmetic", arithmetic=ARITHMETIC)
    problems = run_stage(
        store, make_spec("prepare", PrepareStage(data=data, template=template, seed=0), {}, "prepare")
    ).ref
    shape = ScratchModelConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, documents=2000, strict_format_share=0.9
    )
    pretraining = PretrainStage(model=shape, arithmetic=ARITHMETIC, template=template, plain_template=plain, seed=0)
    base = run_stage(store, make_spec("pretrain", pretraining, {}, "base")).ref
    start = run_stage(store, sft_spec(base, problems, epochs=12)).ref
    return {
        "sft": sft_spec(base, problems, epochs=2),
        "grpo": grpo_spec(start, problems, steps=6),
        "grpo-long": grpo_spec(start, problems, steps=40),
    }


def sft_spec(model: ArtifactRef, problems: ArtifactRef, epochs: int) -> StageSpec:
    """6 steps per epoch."""
    sft = SFTConfig(
        epochs=epochs,
        batch_size=16,
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="cosine"),
        validate_every=4,
        validation_problems=8,
    )
    inputs = {"model": model, "examples": problems, "problems": problems}
    return make_spec("sft", SFTStage(sft=sft, sampling=SAMPLING, seed=0), inputs, "sft")


def grpo_spec(model: ArtifactRef, problems: ArtifactRef, steps: int) -> StageSpec:
    """Off-policy: 4 updates per rollout batch."""
    grpo = GRPOConfig(
        n_grpo_steps=steps,
        rollout_batch_size=64,
        train_batch_size=32,
        epochs_per_rollout_batch=2,
        loss_type="grpo_clip",
        group_size=8,
        optimizer=OptimizerConfig(learning_rate=2e-4),
        validate_every=2,
        validation_problems=8,
    )
    inputs = {"model": model, "problems": problems}
    return make_spec("grpo", GRPOStage(grpo=grpo, sampling=SAMPLING, seed=0), inputs, "grpo")


def record(store: Store, ref: ArtifactRef) -> list[tuple[Any, ...]]:
    """Points and tables of an artifact's record, without the times and what was merely said."""
    return [
        (
            event.kind,
            event.step,
            event.total,
            event.name,
            {name: value for name, value in event.metrics.items() if not name.startswith(("time/", "memory/"))},
            event.rows,
        )
        for event in read_events(store.path(ref))
        if event.kind != "say"
    ]


def event_times(store: Store, ref: ArtifactRef) -> dict[int, float]:
    """Step -> Unix time of its point."""
    return {event.step: event.time for event in read_events(store.path(ref)) if event.kind == "point"}


def checkpoint_steps(store: Path) -> list[int]:
    """Steps of the complete checkpoints of the stages under way."""
    return sorted(int(one.parent.name) for one in matching(store, ".work/*/checkpoints/[0-9]*/complete.json"))
