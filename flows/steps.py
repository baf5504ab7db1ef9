"""What the flows are made of: lists of task calls that several flows share. No decorators here.

A `Ladder` collects what a study has so far: labelled evaluations for the tables, training runs for the
curves, and the SFT sweep's models, which later methods may start from.
"""

from dataclasses import dataclass, field
from typing import Literal

from alignment_core.config import EvaluationConfig, StudyConfig, Variant
from alignment_core.prompts import read_template
from alignment_core.records import ArtifactRef
from alignment_core.seeding import derive_seed
from alignment_core.stage_config import Comparison
from tasks.data import count_traces, filter_traces, prepare_problems
from tasks.evaluation import Evaluated, analyze, evaluate, write_report
from tasks.models import base_model
from tasks.training import distill_traces, expert_round, finetune, optimize_policy
from tasks.workspace import Workspace

Size = int | Literal["full"]


@dataclass
class Ladder:
    """One study as it grows."""

    workspace: Workspace
    config: StudyConfig
    problems: ArtifactRef
    base: ArtifactRef
    traces: dict[Variant, ArtifactRef] = field(default_factory=dict)
    evaluations: list[Evaluated] = field(default_factory=list)
    runs: dict[str, ArtifactRef] = field(default_factory=dict)
    sweep: dict[tuple[Size, Variant, int], ArtifactRef] = field(default_factory=dict)


def start(workspace: Workspace, config: StudyConfig) -> Ladder:
    """The base model, which may refuse the settings, then the problems."""
    base = base_model(workspace, config)
    return Ladder(workspace, config, prepare_problems(workspace, config), base)


def zero_shot(ladder: Ladder) -> None:
    """The base model under the study's prompt and, if asked for, under the plain question-answer prompt."""
    config, workspace = ladder.config, ladder.workspace
    comparison = Comparison(name="zero-shot", method="zero-shot")
    ladder.evaluations.append(evaluate(workspace, config, comparison, ladder.base, ladder.problems))
    if config.plain_prompt is None:
        return
    ladder.evaluations.append(
        evaluate(
            workspace,
            config,
            Comparison(name="plain", method="plain"),
            ladder.base,
            ladder.problems,
            evaluation=EvaluationConfig(**{**config.evaluation.model_dump(), "reward": "number"}),
            sampling=config.sampling.model_copy(update={"stop": ("\nQuestion:",)}),
            template=read_template(config.plain_prompt),
        )
    )


def trace_set(ladder: Ladder, variant: Variant) -> ArtifactRef:
    """The artifact that holds the traces of a variant, asked for once."""
    if variant not in ladder.traces:
        make = {"filtered": filter_traces, "distilled": distill_traces}.get(variant)
        ladder.traces[variant] = make(ladder.workspace, ladder.config, ladder.problems) if make else ladder.problems
    return ladder.traces[variant]


def sft_member(ladder: Ladder, size: Size, variant: Variant, seed: int) -> ArtifactRef:
    """One member of the sweep, trained."""
    member = (size, variant, seed)
    if member not in ladder.sweep:
        name = f"sft/{size}/{variant}/seed{seed}"
        ladder.sweep[member] = ladder.runs[name] = finetune(
            ladder.workspace,
            ladder.config,
            ladder.base,
            trace_set(ladder, variant),
            ladder.problems,
            sft=ladder.config.sft,
            seed=seed,
            label=name,
            size=None if size == "full" else size,
        )
    return ladder.sweep[member]


def sft_sweep(ladder: Ladder) -> None:
    """Sizes x variants x seeds, each trained and evaluated."""
    for seed in ladder.config.seeds:
        for variant in ladder.config.sweep.variants:
            for size in ladder.config.sweep.sizes:
                evaluate_member(ladder, size, variant, seed)


def evaluate_member(ladder: Ladder, size: Size, variant: Variant, seed: int) -> str:
    """Train and evaluate one member of the sweep, once; returns the evaluation's name."""
    name = f"sft/{size}/{variant}/seed{seed}"
    if all(item.comparison.name != name for item in ladder.evaluations):
        model = sft_member(ladder, size, variant, seed)
        comparison = Comparison(
            name=name,
            method="sft",
            start="zero-shot",
            seed=seed,
            size=count_traces(ladder.workspace, trace_set(ladder, variant)) if size == "full" else size,
            variant=variant,
        )
        ladder.evaluations.append(
            evaluate(ladder.workspace, ladder.config, comparison, model, ladder.problems, training=(model,))
        )
    return name


def start_model(ladder: Ladder, start_from: Literal["base", "sft"], seed: int) -> tuple[ArtifactRef, str]:
    """The model a method starts from and the name of that model's own evaluation."""
    if start_from == "base":
        return ladder.base, "zero-shot"
    size, variant = ladder.config.sft_start
    name = evaluate_member(ladder, size, variant, seed)
    return ladder.sweep[size, variant, seed], name


def expert_iteration(ladder: Ladder) -> None:
    """Every start and seed of the study's Expert Iteration."""
    if ladder.config.expert_iteration is None:
        return
    for seed in ladder.config.seeds:
        for start_from in ladder.config.expert_iteration.starts:
            expert_rounds(ladder, start_from, seed, ladder.config.expert_iteration.n_ei_steps)


def expert_rounds(ladder: Ladder, start_from: Literal["base", "sft"], seed: int, rounds: int) -> None:
    """sample -> grade -> select -> SFT -> evaluate, each round from the policy of the one before."""
    model, origin = start_model(ladder, start_from, seed)
    name = f"ei/{start_from}/seed{seed}"
    training: tuple[ArtifactRef, ...] = ()
    for index in range(1, rounds + 1):
        label = f"{name}/round-{index:02d}"
        stages = expert_round(
            ladder.workspace,
            ladder.config,
            model,
            ladder.problems,
            seed=derive_seed(seed, start_from),
            label=label,
            round_index=index,
        )
        model, training = stages[-1], training + stages
        ladder.runs[label] = model
        final = index == rounds
        comparison = Comparison(name=name if final else label, method="ei", start=origin, seed=seed, step=index)
        ladder.evaluations.append(
            evaluate(ladder.workspace, ladder.config, comparison, model, ladder.problems, training=training)
        )


def require_trainable(config: StudyConfig) -> None:
    """Refuse, before any stage runs, sampling that GRPO cannot train on; greedy evaluation alone is fine."""
    if config.grpo is not None and (config.sampling.temperature == 0 or config.sampling.top_p != 1):
        raise ValueError(
            "GRPO trains on samples of the policy itself: set sampling.top_p to 1 and sampling.temperature above 0, "
            "or leave it out with grpo=null"
        )


def grpo_runs(ladder: Ladder) -> None:
    """GRPO from each start and seed, evaluated."""
    if ladder.config.grpo is None:
        return
    require_trainable(ladder.config)
    for seed in ladder.config.seeds:
        for start_from in ladder.config.grpo.starts:
            model, origin = start_model(ladder, start_from, seed)
            name = f"grpo/{start_from}/seed{seed}"
            trained = optimize_policy(
                ladder.workspace,
                ladder.config,
                model,
                ladder.problems,
                seed=derive_seed(seed, start_from),
                label=name,
            )
            ladder.runs[name] = trained
            comparison = Comparison(name=name, method="grpo", start=origin, seed=seed)
            ladder.evaluations.append(
                evaluate(ladder.workspace, ladder.config, comparison, trained, ladder.problems, training=(trained,))
            )


def everything(ladder: Ladder) -> None:
    """The study up to its statistics."""
    require_trainable(ladder.config)
    require_traces(ladder)
    zero_shot(ladder)
    if has_traces(ladder):
        trace_set(ladder, "filtered")
        sft_sweep(ladder)
    expert_iteration(ladder)
    grpo_runs(ladder)


def has_traces(ladder: Ladder) -> bool:
    """Whether there is anything to imitate: solutions, or a trace set. Bare questions and answers have none."""
    return count_traces(ladder.workspace, ladder.problems) != 0 or ladder.config.distillation is not None


def require_traces(ladder: Ladder) -> None:
    """Refuse, before anything trains, a study that wants to start from SFT without traces."""
    config = ladder.config
    starts = [part.starts for part in (config.expert_iteration, config.grpo) if part is not None]
    if not has_traces(ladder) and any("sft" in chosen for chosen in starts):
        raise ValueError(
            "there are no traces to start from SFT with: give data.traces, or answers that show their solution and end "
            "in '#### 24' or a box; or take the start 'sft' out of grpo.starts and expert_iteration.starts"
        )


def analyze_step(ladder: Ladder) -> ArtifactRef:
    """Statistics over everything evaluated."""
    return analyze(ladder.workspace, ladder.evaluations)


def report_step(ladder: Ladder, analysis: ArtifactRef) -> ArtifactRef:
    """The page."""
    context = {"prepare": ladder.problems, "analysis": analysis}
    if "filtered" in ladder.traces:
        context["filter"] = ladder.traces["filtered"]
    return write_report(ladder.workspace, ladder.config, ladder.evaluations, ladder.runs, context)
