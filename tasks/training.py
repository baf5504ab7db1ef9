"""Training runs as cached stages."""

from alignment_core.records import ArtifactRef
from alignment_core.seeding import derive_seed
from alignment_core.stage_config import EvaluationSize, GRPOStage, SelectStage, SFTStage
from alignment_core.study_config import StudyConfig
from alignment_core.training_config import SFTConfig
from tasks.evaluation import answer_train_problems
from tasks.stages import run_cached
from tasks.workspace import Workspace


def finetune(
    workspace: Workspace,
    config: StudyConfig,
    model: ArtifactRef,
    examples: ArtifactRef,
    problems: ArtifactRef,
    *,
    sft: SFTConfig,
    seed: int,
    label: str,
    size: int | None = None,
) -> ArtifactRef:
    """SFT of `model` on the first `size` of the shuffled `examples`."""
    stage = SFTStage(
        sft=sft,
        sampling=config.sampling,
        reward=config.evaluation.reward,
        compute_dtype=config.model.compute_dtype,
        processes=config.model.processes,
        size=size,
        subset_seed=config.seed,
        seed=seed,
    )
    inputs = {"model": model, "examples": examples, "problems": problems}
    return run_cached(workspace, "sft", stage, inputs, label)


def expert_round(
    workspace: Workspace,
    config: StudyConfig,
    model: ArtifactRef,
    problems: ArtifactRef,
    *,
    seed: int,
    label: str,
    round_index: int,
) -> tuple[ArtifactRef, ...]:
    """sample -> grade -> select -> SFT; returns the four artifacts, the new model last."""
    ei = config.expert_iteration
    drawn = derive_seed(seed, "expert_iteration", round_index)
    sampled, graded = answer_train_problems(
        workspace,
        config,
        model,
        problems,
        questions=ei.questions_per_step,
        samples_per_problem=ei.group_size,
        sampling=config.sampling.model_copy(update={"min_tokens": ei.min_tokens}),
        seed=drawn,
        label=label,
    )
    select = SelectStage(max_correct_per_question=ei.max_correct_per_question, seed=drawn)
    inputs = {"completions": sampled, "grades": graded}
    selected = run_cached(workspace, "select", select, inputs, f"{label}: select")
    tuned = finetune(workspace, config, model, selected, problems, sft=ei.sft, seed=drawn, label=f"{label}: sft")
    return sampled, graded, selected, tuned


def distill_traces(
    workspace: Workspace, config: StudyConfig, teacher: ArtifactRef, problems: ArtifactRef, of: str = ""
) -> ArtifactRef:
    """A teacher's right answers to train problems, as traces: sample -> grade -> select; of: end of the labels."""
    distillation = config.distillation
    seed = derive_seed(config.seed, "distill")
    sampled, graded = answer_train_problems(
        workspace,
        config,
        teacher,
        problems,
        questions=distillation.questions,
        samples_per_problem=distillation.samples_per_problem,
        sampling=config.sampling,
        seed=seed,
        label=f"teacher{of}",
        drawn=False,
    )
    select = SelectStage(max_correct_per_question=distillation.max_correct_per_question, as_text=True, seed=seed)
    return run_cached(workspace, "select", select, {"completions": sampled, "grades": graded}, f"teacher{of}: select")


def optimize_policy(
    workspace: Workspace, config: StudyConfig, model: ArtifactRef, problems: ArtifactRef, *, seed: int, label: str
) -> ArtifactRef:
    """GRPO from `model`, within the study's budget if it has one."""
    grpo, ahead = config.grpo, None
    if config.budget is not None:
        grpo = grpo.model_copy(update={"time_budget_hours": config.budget.hours})
        ahead = EvaluationSize(**config.evaluation.model_dump(include=set(EvaluationSize.model_fields)))
    stage = GRPOStage(
        grpo=grpo,
        ahead=ahead,
        sampling=config.sampling,
        reward=config.evaluation.reward,
        compute_dtype=config.model.compute_dtype,
        processes=config.model.processes,
        seed=seed,
    )
    return run_cached(workspace, "grpo", stage, {"model": model, "problems": problems}, label)
