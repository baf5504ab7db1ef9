"""The loss variants `benchmarks.learning` trains: what each changes in the preset's GRPO settings.

Every variant keeps the preset's learning rate, batch and number of rollout steps, and none was tuned: the curves say
whether a variant learns under settings that suit the main one, not which variant is best.
"""

from dataclasses import dataclass, field
from typing import Any

from alignment_core.study_config import StudyConfig
from alignment_core.training_config import DPOConfig, GRPOConfig, OptimizerConfig

MAIN = "reinforce_with_baseline"
"""The preset's own loss."""
DPO = "dpo"
OFF_POLICY_EPOCHS, OFF_POLICY_BATCHES = 2, 2
"""Off-policy: so many epochs over each rollout batch, each cut into so many optimizer batches."""
OTHERS, OFF_POLICY_STEPS = 0.6, 0.3
"""Rollout steps of the variants, as shares of the main one's; an off-policy step has four updates."""
OVERLONG_SHARE = 7
"""DAPO's overlong buffer is one seventh of max_tokens; its paper has 4,096 of 20,480 tokens."""


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    name: str
    label: str
    """For people: a panel's title, a row of the table."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Settings of `GRPOConfig` that differ from the preset's."""
    off_policy: bool = False
    start: str = "base"
    overlong: bool = False

    def steps(self, main: int) -> int:
        """Rollout steps where the main variant has `main`."""
        share = 1.0 if self.name == MAIN else OFF_POLICY_STEPS if self.off_policy else OTHERS
        return max(round(main * share), 1)


VARIANTS = (
    Variant(MAIN, "REINFORCE with baseline (main)"),
    Variant(MAIN, "REINFORCE with baseline, from SFT", start="sft"),
    Variant("no_baseline", "no baseline", {"loss_type": "no_baseline"}),
    Variant("grpo_clip_off_policy", "GRPO clip, off-policy", {"loss_type": "grpo_clip"}, off_policy=True),
    Variant("grpo_no_clip_off_policy", "no clip, off-policy", {"loss_type": "grpo_no_clip"}, off_policy=True),
    Variant("no_std", "without std normalisation", {"use_std_normalization": False}),
    Variant(
        "gspo",
        "GSPO, off-policy",
        {"loss_type": "gspo", "clip_low": 3e-4, "clip_high": 4e-4},
        off_policy=True,
    ),
    Variant("cispo", "CISPO, off-policy", {"loss_type": "cispo", "clip_low": 1.0, "clip_high": 0.28}, off_policy=True),
    Variant(
        "dapo",
        "DAPO, off-policy",
        {
            "loss_type": "grpo_clip",
            "clip_low": 0.2,
            "clip_high": 0.28,
            "length_normalization": "token_mean",
            "dynamic_sampling_rounds": 2,
        },
        off_policy=True,
        overlong=True,
    ),
    Variant("rloo", "RLOO", {"baseline": "leave_one_out", "use_std_normalization": False}),
    Variant("kl", "KL to the start, 0.01", {"kl_coefficient": 0.01}),
    Variant("token_mean", "length: mean over tokens", {"length_normalization": "token_mean"}),
    Variant("constant", "length: constant (Dr. GRPO)", {"length_normalization": "constant"}),
    Variant("grpo_clip_on_policy", "GRPO clip, on-policy", {"loss_type": "grpo_clip"}),
    Variant("importance_cap", "importance weights, cap 2", {"importance_cap": 2.0}),
    Variant(DPO, "DPO on own rollouts, from SFT", start="sft"),
)
"""In the order of table and figure. The main one has length normalisation masked_mean."""


def chosen(names: list[str] | None) -> list[Variant]:
    """The variants of these names, or all; raises ValueError for a name that is none."""
    known = {variant.name for variant in VARIANTS}
    unknown = sorted(set(names or ()) - known)
    if unknown:
        raise ValueError(f"no variant {unknown[0]!r}: take {', '.join(sorted(known))}")
    return [variant for variant in VARIANTS if names is None or variant.name in names]


def planned(names: list[str] | None, seeds: list[int]) -> list[tuple[Variant, int]]:
    """Runs in their order: the main variant with every seed, then seed by seed, so that a cut leaves whole rounds."""
    pairs = [(variant, seed) for seed in seeds for variant in chosen(names)]
    return sorted(pairs, key=lambda pair: pair[0].name != MAIN)


def grpo_settings(study: StudyConfig, variant: Variant, steps: int, validation: int) -> GRPOConfig:
    """The preset's GRPO settings under a variant, where the main one has `steps` rollout steps."""
    if study.grpo is None:
        raise ValueError("the preset has no grpo settings: take one that has, tiny for example")
    settings = study.grpo.model_dump() | {"n_grpo_steps": variant.steps(steps), "validation_problems": validation}
    settings |= {"rollouts_logged": 0, **variant.changes}
    if variant.off_policy:
        settings["epochs_per_rollout_batch"] = OFF_POLICY_EPOCHS
        settings["train_batch_size"] = study.grpo.rollout_batch_size // OFF_POLICY_BATCHES
        settings["validate_every"] = max(study.grpo.validate_every // 2, 1)
    if variant.overlong:
        settings["overlong_buffer"] = study.sampling.max_tokens // OVERLONG_SHARE
    return GRPOConfig(**settings)


def dpo_settings(validation: int) -> DPOConfig:
    """One epoch; on dev problems of seed 0 this rate ended level with 1e-4 and above 2e-4."""
    return DPOConfig(
        optimizer=OptimizerConfig(learning_rate=5e-5, schedule="linear"),
        validate_every=10,
        validation_problems=validation,
    )
