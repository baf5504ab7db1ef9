"""What a member of an experiment does: from the model it starts from to its evaluations, as a list of task calls."""

from collections.abc import Callable
from dataclasses import dataclass, field

from alignment_core.config import Variant
from alignment_core.experiments import Member
from alignment_core.records import ArtifactRef
from alignment_core.seeding import derive_seed
from alignment_core.stage_config import Comparison
from alignment_core.study_config import Method
from tasks.data import count_traces
from tasks.evaluation import Evaluated, evaluate
from tasks.preferences import import_pairs, mine_pairs, optimize_preferences
from tasks.training import expert_round, finetune, optimize_policy
from tasks.workspace import Workspace


@dataclass(frozen=True)
class Start:
    """Where a member begins."""

    model: ArtifactRef
    problems: ArtifactRef
    evaluation: str
    """Name of the start's own evaluation."""
    traces: ArtifactRef | None = None
    """What SFT imitates."""


@dataclass(frozen=True)
class Trained:
    """What a member came to."""

    model: ArtifactRef
    evaluations: list[Evaluated]
    """The last one is of `model`."""
    runs: dict[str, ArtifactRef] = field(default_factory=dict)
    """Training stages by name, for the curves."""


def train(workspace: Workspace, member: Member, start: Start) -> Trained:
    """Everything one member computes."""
    return _METHODS[member.method](workspace, member, start)


def _evaluate(workspace: Workspace, member: Member, start: Start) -> Trained:
    comparison = _comparison(member, start, "zero-shot")
    return Trained(start.model, [evaluate(workspace, member.config, comparison, start.model, start.problems)])


def _sft(workspace: Workspace, member: Member, start: Start) -> Trained:
    config, examples = member.config, member.config.examples
    traces = start.traces or start.problems
    size = None if examples.size == "full" else examples.size
    model = finetune(
        workspace,
        config,
        start.model,
        traces,
        start.problems,
        sft=config.sft,
        seed=member.seed,
        label=member.name,
        size=size,
    )
    shown = size or count_traces(workspace, traces)
    comparison = _comparison(member, start, "sft", size=shown, variant=examples.variant)
    return _trained(workspace, member, start, comparison, model)


def _expert_iteration(workspace: Workspace, member: Member, start: Start) -> Trained:
    """sample -> grade -> select -> SFT -> evaluate, each round from the policy of the one before."""
    config, model = member.config, start.model
    rounds = config.expert_iteration.n_ei_steps
    evaluations: list[Evaluated] = []
    runs: dict[str, ArtifactRef] = {}
    training: tuple[ArtifactRef, ...] = ()
    for index in range(1, rounds + 1):
        label = f"{member.name}/round-{index:02d}"
        seed = derive_seed(member.seed, member.start)
        stages = expert_round(workspace, config, model, start.problems, seed=seed, label=label, round_index=index)
        runs[label] = model = stages[-1]
        training += stages
        name = member.name if index == rounds else label
        comparison = _comparison(member, start, "ei", name=name, step=index)
        evaluations.append(evaluate(workspace, config, comparison, model, start.problems, training=training))
    return Trained(model, evaluations, runs)


def _grpo(workspace: Workspace, member: Member, start: Start) -> Trained:
    seed = derive_seed(member.seed, member.start)
    model = optimize_policy(workspace, member.config, start.model, start.problems, seed=seed, label=member.name)
    return _trained(workspace, member, start, _comparison(member, start, "grpo"), model)


def _dpo(workspace: Workspace, member: Member, start: Start) -> Trained:
    """Pairs from the start's own rollouts, or from a file, then one run on them."""
    config, seed, name = member.config, derive_seed(member.seed, member.start), member.name
    if config.pairs.source is None:
        before = mine_pairs(
            workspace, config, start.model, start.problems, pairs=config.pairs, seed=seed, label=f"{name}/pairs"
        )
    else:
        before = (import_pairs(workspace, config, start.problems, pairs=config.pairs, label=f"{name}/pairs"),)
    model = optimize_preferences(
        workspace, config, start.model, before[-1], start.problems, dpo=config.dpo, seed=seed, label=name
    )
    return _trained(workspace, member, start, _comparison(member, start, "dpo"), model, before)


_METHODS: dict[Method, Callable[[Workspace, Member, Start], Trained]] = {
    "evaluate": _evaluate,
    "sft": _sft,
    "expert_iteration": _expert_iteration,
    "grpo": _grpo,
    "dpo": _dpo,
}


def _trained(
    workspace: Workspace,
    member: Member,
    start: Start,
    comparison: Comparison,
    model: ArtifactRef,
    before: tuple[ArtifactRef, ...] = (),
) -> Trained:
    """One training stage and its evaluation; `before`: stages that its cost includes."""
    evaluated = evaluate(workspace, member.config, comparison, model, start.problems, training=(*before, model))
    return Trained(model, [evaluated], {member.name: model})


def _comparison(
    member: Member,
    start: Start,
    method: str,
    *,
    name: str | None = None,
    size: int | None = None,
    variant: Variant | None = None,
    step: int | None = None,
) -> Comparison:
    return Comparison.model_validate(
        {
            "name": name or member.name,
            "method": method,
            "start": start.evaluation,
            "seed": member.seed,
            "size": size,
            "variant": variant,
            "step": step,
            "experiment": member.experiment,
            "varied": member.varied,
        }
    )
