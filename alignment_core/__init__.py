"""alignment_core: the mathematics and the machinery of reasoning alignment, usable as a library on its own.

Names are loaded from their rooms at first use, so that importing the package costs nothing (no torch), and a
stage depends only on the rooms it names.
"""

from importlib import import_module
from typing import Any

_ROOMS = {
    "advantages": ("GroupStatistics", "group_advantages", "group_statistics", "overlong_penalties"),
    "assignment": (
        "compute_entropy",
        "compute_group_normalized_rewards",
        "compute_grpo_clip_loss",
        "compute_naive_policy_gradient_loss",
        "compute_policy_gradient_loss",
        "evaluate_vllm",
        "get_response_log_probs",
        "grpo_microbatch_train_step",
        "log_generations",
        "sft_microbatch_train_step",
        "tokenize_prompt_and_output",
    ),
    "batching": ("Batch", "TokenSequence", "collate", "micro_batches"),
    "comparability": ("Terms", "beside_published", "compare_with", "published_numbers"),
    "study_config": ("StudyConfig",),
    "dpo": ("TokenPair", "train_dpo"),
    "evaluation": ("evaluate",),
    "instruction_tuning": ("compute_per_instance_dpo_loss", "get_packed_sft_dataset", "iterate_batches"),
    "logprobs": ("TokenScores", "response_log_probs"),
    "losses": (
        "aggregate",
        "batch_denominator",
        "cispo_loss",
        "dpo_loss",
        "grpo_clip_loss",
        "grpo_no_clip_loss",
        "gspo_loss",
        "implicit_rewards",
        "importance_weights",
        "kl_to_reference",
        "policy_gradient_loss",
    ),
    "masking": ("masked_mean", "masked_normalize", "masked_sum"),
    "policy_gradient": ("train_grpo",),
    "preference_pairs": ("mine_pairs",),
    "problems": ("prepare",),
    "prompts": ("render", "render_few_shot"),
    "records": (
        "ArtifactRef",
        "Completion",
        "EvalReport",
        "Example",
        "GradedResponse",
        "PreferencePair",
        "Problem",
        "ScoredCompletion",
    ),
    "rewards": (
        "grade_batch",
        "grade_stream",
        "parse_gsm8k_response",
        "parse_mmlu_response",
        "question_only_reward_fn",
        "r1_zero_reward_fn",
        "submit_batch",
    ),
    "runs": ("MemoryRun", "RunContext"),
    "sampling": ("PromptRequest", "Sampler", "build_requests", "make_sampler"),
    "seed_statistics": ("accuracy_over_seeds", "difference_over_seeds"),
    "seeding": ("derive_seed",),
    "selection": ("select_correct", "selection_report"),
    "sft": ("train_sft",),
    "statistics": ("mcnemar_exact", "paired_bootstrap", "pass_at_k", "wilson_interval"),
    "votes": ("majority_share",),
    "voting": ("count_votes",),
}
"""Room -> the names it lends the package."""

_HOME = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a name from its room at first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """The module's own names and the lent ones."""
    return sorted({*globals(), *_HOME})
