"""Preference pairs and direct preference optimization as cached stages."""

from alignment_core.problem_sources import require_readable
from alignment_core.prompts import read_template
from alignment_core.records import ArtifactRef
from alignment_core.seeding import derive_seed
from alignment_core.stage_config import DPOStage, ImportPairsStage, PairsStage
from alignment_core.study_config import StudyConfig
from alignment_core.training_config import DPOConfig, PairsConfig
from tasks.data import source_digest
from tasks.evaluation import answer_train_problems
from tasks.stages import run_cached
from tasks.workspace import Workspace


def mine_pairs(
    workspace: Workspace,
    config: StudyConfig,
    model: ArtifactRef,
    problems: ArtifactRef,
    *,
    pairs: PairsConfig,
    seed: int,
    label: str,
) -> tuple[ArtifactRef, ...]:
    """sample -> grade -> pairs over train problems; returns the three artifacts, the pairs last."""
    drawn = derive_seed(seed, "pairs")
    sampled, graded = answer_train_problems(
        workspace,
        config,
        model,
        problems,
        questions=pairs.questions,
        samples_per_problem=pairs.samples_per_problem,
        sampling=config.sampling.model_copy(update={"min_tokens": pairs.min_tokens}),
        seed=drawn,
        label=label,
    )
    mining = PairsStage(max_per_problem=pairs.max_per_problem, rejected=pairs.rejected, seed=drawn)
    inputs = {"completions": sampled, "grades": graded}
    return sampled, graded, run_cached(workspace, "pairs", mining, inputs, f"{label}: pairs")


def import_pairs(
    workspace: Workspace, config: StudyConfig, problems: ArtifactRef, *, pairs: PairsConfig, label: str
) -> ArtifactRef:
    """The pairs of `pairs.source`, those over dev and test problems left out.

    Raises ValueError if there is no source, or, naming file and line, if a local one cannot be read: at once, and in
    a plan too.
    """
    if pairs.source is None:
        raise ValueError("pairs.source is not set: give a file of pairs, or mine them from the model's own samples")
    require_readable(pairs.source, "train")
    stage = ImportPairsStage(
        source=pairs.source,
        content=source_digest(pairs.source),
        template=read_template(config.prompt),
        render_prompts=pairs.render_prompts,
    )
    return run_cached(workspace, "import_pairs", stage, {"problems": problems}, label)


def optimize_preferences(
    workspace: Workspace,
    config: StudyConfig,
    model: ArtifactRef,
    pairs: ArtifactRef,
    problems: ArtifactRef,
    *,
    dpo: DPOConfig,
    seed: int,
    label: str,
) -> ArtifactRef:
    """DPO of `model` on preference pairs; `model` is also the reference."""
    stage = DPOStage(
        dpo=dpo,
        sampling=config.sampling,
        reward=config.evaluation.reward,
        compute_dtype=config.model.compute_dtype,
        processes=config.model.processes,
        seed=seed,
    )
    return run_cached(workspace, "dpo", stage, {"model": model, "pairs": pairs, "problems": problems}, label)
