"""Sampling, grading and their statistics as cached stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignment_core.choosing import Choice
from alignment_core.config import EvaluationConfig, FewShotConfig, SamplingConfig, Split
from alignment_core.planning import is_planned
from alignment_core.problem_sources import require_readable
from alignment_core.prompts import next_question_stop, read_template
from alignment_core.records import ArtifactRef, EvalReport
from alignment_core.seeding import derive_seed
from alignment_core.stage_config import (
    AnalyzeStage,
    ChooseStage,
    Comparison,
    Contrast,
    FewShotStage,
    GradeStage,
    ReportStage,
    SampleStage,
)
from alignment_core.study_config import ExperimentConfig, StudyConfig
from tasks.data import source_digest
from tasks.mlflow_format import flatten
from tasks.outline import code_origin, outlines, run_again
from tasks.stages import run_cached
from tasks.workspace import Workspace


@dataclass(frozen=True)
class Evaluated:
    """One labelled evaluation and where its verdicts are."""

    comparison: Comparison
    grade: ArtifactRef
    training: tuple[ArtifactRef, ...] = ()
    """The stages that produced the model, beyond the one it started from; for the cost column."""


def evaluate(
    workspace: Workspace,
    config: StudyConfig,
    comparison: Comparison,
    model: ArtifactRef,
    problems: ArtifactRef,
    *,
    training: tuple[ArtifactRef, ...] = (),
    split: Split | None = None,
    evaluation: EvaluationConfig | None = None,
    sampling: SamplingConfig | None = None,
    template: str | None = None,
) -> Evaluated:
    """sample -> grade on the study's evaluation split, under the same seed for every model.

    `template` asks otherwise than the study does; without it, `evaluation.few_shot` may.
    """
    evaluation = evaluation or config.evaluation
    split = split or evaluation.split
    sampling = sampling or config.sampling
    inputs = {"model": model, "problems": problems}
    if evaluation.few_shot is not None and template is None:
        template = read_template(evaluation.few_shot.template)
        sampling = ending_at_the_next_question(sampling, template)
        inputs["examples"] = few_shot_examples(workspace, evaluation, evaluation.few_shot, split, problems)
    stage = SampleStage(
        sampling=sampling,
        compute_dtype=config.model.compute_dtype,
        split=split,
        subset=evaluation.subset,
        limit=evaluation.limit,
        samples_per_problem=evaluation.samples_per_problem,
        template=template,
        seed=derive_seed(config.seed, "evaluate", split),
    )
    name = comparison.name
    completions = run_cached(workspace, "sample", stage, inputs, f"{name}: sample {split}")
    graded = grade(workspace, evaluation, split, completions, f"{name}: grade {split}")
    return Evaluated(comparison, graded, training)


def answer_train_problems(
    workspace: Workspace,
    config: StudyConfig,
    model: ArtifactRef,
    problems: ArtifactRef,
    *,
    questions: int | None,
    samples_per_problem: int,
    sampling: SamplingConfig,
    seed: int,
    label: str,
    drawn: bool = True,
) -> tuple[ArtifactRef, ArtifactRef]:
    """sample -> grade on train problems, as material to train on; the completions and their verdicts.

    questions: how many problems (None: all), drawn by the seed, or the first ones if not `drawn`.
    """
    stage = SampleStage(
        sampling=sampling,
        compute_dtype=config.model.compute_dtype,
        split="train",
        limit=questions,
        draw_seed=seed if drawn else None,
        samples_per_problem=samples_per_problem,
        seed=seed,
    )
    sampled = run_cached(workspace, "sample", stage, {"model": model, "problems": problems}, f"{label}: sample")
    return sampled, grade(workspace, config.evaluation, "train", sampled, f"{label}: grade")


def few_shot_examples(
    workspace: Workspace, evaluation: EvaluationConfig, few_shot: FewShotConfig, split: Split, problems: ArtifactRef
) -> ArtifactRef:
    """The worked examples of a few-shot evaluation, which all models share.

    Raises ValueError, naming file and line, if their file cannot be read: at once, and in a plan too.
    """
    if few_shot.source is not None:
        require_readable(few_shot.source, "train")
    stage = FewShotStage(
        shots=few_shot.shots,
        seed=few_shot.seed,
        split=split,
        reward=evaluation.reward,
        source=few_shot.source,
        content=source_digest(few_shot.source),
    )
    return run_cached(workspace, "few_shot", stage, {"problems": problems}, f"examples for {split}")


def ending_at_the_next_question(sampling: SamplingConfig, template: str) -> SamplingConfig:
    """Sampling that also stops where a model goes on with a question of its own."""
    stop = next_question_stop(template)
    return sampling if stop is None else sampling.model_copy(update={"stop": (stop, *sampling.stop)})


def grade(
    workspace: Workspace,
    evaluation: EvaluationConfig,
    split: Split,
    completions: ArtifactRef,
    label: str,
) -> ArtifactRef:
    """Verdicts and the evaluation report over completions."""
    stage = GradeStage(reward=evaluation.reward, mode=evaluation.mode, split=split)
    return run_cached(workspace, "grade", stage, {"completions": completions}, label)


def analyze(workspace: Workspace, evaluations: list[Evaluated], contrasts: Sequence[Contrast] = ()) -> ArtifactRef:
    """Intervals, paired tests and the split of each gain over the study's evaluations; and its `contrasts`."""
    stage = AnalyzeStage(evaluations=tuple(item.comparison for item in evaluations), contrasts=tuple(contrasts))
    inputs = {item.comparison.name: item.grade for item in evaluations}
    return run_cached(workspace, "analyze", stage, inputs, "analyze")


def choose_winner(
    workspace: Workspace, experiment: ExperimentConfig, groups: Sequence[str], judged: Mapping[str, ArtifactRef]
) -> tuple[ArtifactRef, str]:
    """The artifact of a choice among `groups`, and the winner; judged: grades of dev problems by member.

    In a plan of members that are yet to train, the first listed stands in for the winner.
    """
    rule = experiment.choice.rule if experiment.choice is not None else "best"
    stage = ChooseStage(candidates=tuple(groups), rule=rule)
    ref = run_cached(workspace, "choose", stage, judged, f"{experiment.name}: choose")
    if is_planned(ref):
        if workspace.planner is not None:
            workspace.planner.notes.append(f"{experiment.name}: not chosen yet; planned as if {groups[0]} had won")
        return ref, groups[0]
    return ref, Choice.model_validate_json((workspace.store.path(ref) / "choice.json").read_bytes()).winner


def write_report(
    workspace: Workspace,
    config: StudyConfig,
    evaluations: list[Evaluated],
    runs: dict[str, ArtifactRef],
    context: dict[str, ArtifactRef],
) -> ArtifactRef:
    """The HTML page; `runs` are training stages by name, `context` the prepare, filter and analyze artifacts and the
    choices, each as `choice: EXPERIMENT`."""
    inputs = {**context, **runs, **{f"grade: {item.comparison.name}": item.grade for item in evaluations}}
    stage = ReportStage(
        title=f"Study {config.name}",
        question=config.question,
        description=config.description,
        evaluations=tuple(item.comparison for item in evaluations),
        experiments=outlines(config),
        failures={name: str(error) for name, error in workspace.failures.items()},
        prompt=config.prompt,
        command=run_again(workspace),
        code=code_origin(workspace),
        runs=tuple(runs),
        keys={name: ref.key for name, ref in inputs.items()},
        accepted=tuple(sorted(workspace.accepted.values(), key=lambda stage: stage.label)),
        settings=flatten(config.model_dump(mode="json")),
    )
    report = run_cached(workspace, "report", stage, inputs, "report")
    for item in evaluations if workspace.planner is None else ():
        summary = read_summary(workspace, item.grade)
        for metric in ("accuracy", "format_rate", "mean_length"):
            workspace.final_metrics[f"final/{item.comparison.name}/{metric}"] = getattr(summary, metric)
    workspace.final_artifacts.append(workspace.store.path(report) / "report.html")
    workspace.final_artifacts.append(workspace.store.path(report) / "figures")
    return report


def read_summary(workspace: Workspace, graded: ArtifactRef) -> EvalReport:
    """The evaluation report of a grade artifact."""
    return EvalReport.model_validate_json((workspace.store.path(graded) / "summary.json").read_bytes())
