"""What the flows are made of: a study's problems, baselines, experiments and page. No decorators here."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from alignment_core.config import EvaluationConfig, Variant
from alignment_core.experiments import (
    Member,
    Variation,
    carried_settings,
    contrasts,
    members_of,
    selected,
    variations,
    waves,
)
from alignment_core.failures import OWN
from alignment_core.manifest import canonical_json
from alignment_core.prompts import read_template
from alignment_core.records import ArtifactRef
from alignment_core.stage_config import Comparison, Contrast
from alignment_core.study_config import BASE, ExperimentConfig, Method, StudyConfig
from flows.methods import Start, Trained, train
from tasks.data import count_traces, filter_traces, prepare_problems, same_traces
from tasks.evaluation import Evaluated, analyze, choose_winner, evaluate, write_report
from tasks.models import base_model, teacher_model
from tasks.training import distill_traces
from tasks.workspace import Workspace


@dataclass(frozen=True)
class Traces:
    """What decides which traces a member imitates."""

    variant: Variant
    problems: str
    """Key of the problems."""
    teacher: str
    """The member that teaches; empty for a checkpoint, and for reference traces."""
    settings: str
    """What else the traces depend on, as JSON."""


DEPENDS_ON: dict[Variant, dict[str, Any]] = {
    "filtered": {"evaluation": {"reward"}},
    "distilled": {
        "evaluation": {"reward", "mode"},
        "distillation": True,
        "sampling": True,
        "model": {"compute_dtype"},
    },
}
"""Variant -> the settings that its traces depend on."""


@dataclass
class Study:
    """One study as it grows."""

    workspace: Workspace
    config: StudyConfig
    evaluations: list[Evaluated] = field(default_factory=list)
    trained: dict[str, Trained] = field(default_factory=dict)
    """By member."""
    winners: dict[str, Variation] = field(default_factory=dict)
    """By experiment with a choice."""
    choices: dict[str, ArtifactRef] = field(default_factory=dict)
    starts: dict[str, Start] = field(default_factory=dict)
    """The base model's, by the settings that its evaluation depends on; below, by those that each depends on."""
    bases: dict[str, ArtifactRef] = field(default_factory=dict)
    problems: dict[str, ArtifactRef] = field(default_factory=dict)
    """The study's own first."""
    traces: dict[Traces, ArtifactRef] = field(default_factory=dict)

    @property
    def runs(self) -> dict[str, ArtifactRef]:
        """Every training stage by name, for the curves."""
        return {name: ref for trained in self.trained.values() for name, ref in trained.runs.items()}


def start(workspace: Workspace, config: StudyConfig) -> Study:
    """The base model, which may refuse the settings, the problems, and what the base model makes of them."""
    study = Study(workspace, config)
    base_start(study, config)
    plain_baseline(study)
    return study


def base_start(study: Study, config: StudyConfig, asked_by: str = "") -> Start:
    """Base model, problems and zero-shot evaluation under some settings, shared by all members that agree in them.

    asked_by: the member that was first to ask for other ones than the study's own; it names what is new.
    """
    relevant = {"model", "data", "prompt", "plain_prompt", "sampling", "evaluation", "seed"}
    shared = _settings(config, relevant)
    if shared not in study.starts:
        comparison = Comparison(name=f"zero-shot/{asked_by}" if asked_by else "zero-shot", method="zero-shot")
        model, problems = _base(study, config), _problems(study, config, asked_by)
        study.evaluations.append(evaluate(study.workspace, config, comparison, model, problems))
        study.starts[shared] = Start(model, problems, comparison.name)
    return study.starts[shared]


def _base(study: Study, config: StudyConfig) -> ArtifactRef:
    shared = _settings(config, {"model", "data", "seed"})
    if shared not in study.bases:
        # A scratch model is pretrained on the study's own prompt, whichever a member asks through.
        own = config.model_copy(update=study.config.model_dump(include={"prompt", "plain_prompt"}))
        study.bases[shared] = base_model(study.workspace, own)
    return study.bases[shared]


def _problems(study: Study, config: StudyConfig, asked_by: str) -> ArtifactRef:
    shared = _settings(config, {"data", "prompt", "seed"})
    if shared not in study.problems:
        label = f"prepare/{asked_by}" if asked_by else "prepare"
        study.problems[shared] = prepare_problems(study.workspace, config, label)
    return study.problems[shared]


def _settings(config: StudyConfig, names: set[str] | dict[str, Any]) -> str:
    return canonical_json(config.model_dump(mode="json", include=names))


def plain_baseline(study: Study) -> None:
    """The base model under the plain question-answer prompt, if the study asks for it."""
    config = study.config
    if config.plain_prompt is None:
        return
    base = base_start(study, config)
    study.evaluations.append(
        evaluate(
            study.workspace,
            config,
            Comparison(name="plain", method="plain"),
            base.model,
            base.problems,
            evaluation=EvaluationConfig(**{**config.evaluation.model_dump(), "reward": "number"}),
            sampling=config.sampling.model_copy(update={"stop": ("\nQuestion:",)}),
            template=read_template(config.plain_prompt),
        )
    )


def run_experiments(study: Study, method: Method | None = None) -> None:
    """Train and evaluate every member of every experiment, or of those of one method with what they start from."""
    for wave in waves(selected(study.config, method)):
        members = [member for experiment in wave for member in _members(study, experiment)]
        places = [(member, member_start(study, member)) for member in members if _can_begin(study, member)]
        require_traces(study, places)
        done: dict[str, Trained] = {}
        study.workspace.side_by_side([partial(train_member, study, *place, done) for place in places])
        whole = [member for member, _ in places if member.name in done]
        for member in whole:  # in this order, whichever came first
            study.trained[member.name] = done[member.name]
            study.evaluations += done[member.name].evaluations
        for experiment in wave:
            choose(study, experiment, [one for one in whole if one.experiment == experiment.name])


def train_member(study: Study, member: Member, place: Start, done: dict[str, Trained]) -> None:
    """One member from its start to its evaluation; with workers, many at the same time.

    One that fails for a reason of its own is noted, and the rest of the study goes on without it; what no other member
    would be spared, and a bug, ends the study.
    """
    try:
        done[member.name] = train(study.workspace, member, place)
    except OWN as error:
        study.workspace.failures[member.name] = error


def _can_begin(study: Study, member: Member) -> bool:
    """Whether what a member starts from, and its teacher, came to be; notes it if not."""
    for group in (member.start, member.teacher or BASE):
        if group != BASE and f"{group}/seed{member.seed}" not in study.trained:
            study.workspace.failures[member.name] = ValueError(f"waits for {group}/seed{member.seed}")
            return False
    return True


def _members(study: Study, experiment: ExperimentConfig) -> list[Member]:
    """The members of an experiment; none, which is noted, where what it waits for left none that can be trained."""
    chosen = [one.name for one in study.config.experiments if one.choice is not None]
    lacking = [name for name in experiment.waits_for if name in chosen and name not in study.winners]
    if lacking:
        study.workspace.failures[experiment.name] = ValueError(f"waits for the winner of {lacking[0]}")
        return []
    carried = carried_settings(study.config, experiment, study.winners)
    try:
        return members_of(study.config, experiment, study.winners, carried)
    except ValueError as error:  # only several winners together can come to this: each alone was looked at before
        study.workspace.failures[experiment.name] = error
        return []


def member_start(study: Study, member: Member) -> Start:
    """The model a member starts from, the problems under its own prompt, and what it is compared with."""
    if member.method == "evaluate":  # what it computes would be its own baseline
        own = base_start(study, study.config).evaluation
        start = Start(_base(study, member.config), _problems(study, member.config, member.group), own)
    else:
        start = base_start(study, member.config, member.group)
    if member.method == "sft":
        start = replace(start, traces=trace_set(study, member, start.problems))
    if member.start != BASE:
        before = study.trained[f"{member.start}/seed{member.seed}"]
        start = replace(start, model=before.model, evaluation=before.evaluations[-1].comparison.name)
    return start


def trace_set(study: Study, member: Member, problems: ArtifactRef) -> ArtifactRef:
    """The artifact that holds the traces a member imitates, asked for once."""
    variant = member.config.examples.variant
    if variant == "raw":
        return problems
    teacher = f"{member.teacher}/seed{member.seed}" if variant == "distilled" and member.teacher else ""
    wanted = Traces(variant, problems.key, teacher, _settings(member.config, DEPENDS_ON[variant]))
    if wanted not in study.traces:
        first = not any((one.variant, one.teacher) == (variant, teacher) for one in study.traces)
        of = "" if first else f"/{member.group}"
        if variant == "filtered":
            made = filter_traces(study.workspace, member.config, problems, of)
        else:
            model = _teacher(study, member, teacher)
            made = distill_traces(study.workspace, member.config, model, problems, f"{of}/{teacher}".rstrip("/"))
        study.traces[wanted] = made
    made = study.traces[wanted]
    # Where the grader accepts every trace, filtered is raw: one run, not the same one again under another key.
    return problems if variant == "filtered" and same_traces(study.workspace, made, problems) else made


def _teacher(study: Study, member: Member, name: str) -> ArtifactRef:
    """The model that writes a member's traces: a member's, the base model, or a checkpoint from elsewhere."""
    if member.teacher == BASE:
        return _base(study, member.config)
    return study.trained[name].model if name else teacher_model(study.workspace, member.config)


def choose(study: Study, experiment: ExperimentConfig, members: list[Member]) -> None:
    """Take one member of an experiment on, by its rule, judged on dev problems; of those whose every seed is there."""
    seeds = study.config.seeds if experiment.seeds is None else experiment.seeds
    names = {member.name for member in members}
    listed = [one for one in variations(experiment) if all(f"{one.group}/seed{seed}" in names for seed in seeds)]
    if experiment.choice is None or not listed:
        return
    judged = {}
    whole = {one.group for one in listed}
    for member in (one for one in members if one.group in whole):
        trained = study.trained[member.name]
        comparison = trained.evaluations[-1].comparison
        problems = _problems(study, member.config, member.group)
        again = evaluate(study.workspace, member.config, comparison, trained.model, problems, split="dev")
        judged[member.name] = again.grade
    ref, winner = choose_winner(study.workspace, experiment, [one.group for one in listed], judged)
    study.choices[experiment.name] = ref
    study.winners[experiment.name] = next(one for one in listed if one.group == winner)


def require_traces(study: Study, places: list[tuple[Member, Start]]) -> None:
    """Refuse, before anything trains, SFT on traces that there are none of."""
    for member, place in places:
        examples = member.config.examples.variant
        if member.method == "sft" and examples != "distilled" and not count_traces(study.workspace, place.problems):
            raise ValueError(
                f"{member.name}: there are no traces to imitate: give data.traces, or answers that show their solution "
                "and end in '#### 24' or a box; or take the experiment out"
            )


def analyze_step(study: Study) -> ArtifactRef:
    """Statistics over everything evaluated, and the comparisons that the experiments ask for."""
    runs: dict[str, dict[int | None, str]] = {}
    for item in study.evaluations:
        group = item.comparison.name.rpartition("/seed")[0]
        runs.setdefault(group, {})[item.comparison.seed] = item.grade.key
    asked = contrasts(study.config, study.winners)
    pairs = [Contrast(name=one, against=other) for one, other in asked if comparable(runs.get(one), runs.get(other))]
    return analyze(study.workspace, study.evaluations, tuple(pairs))


def comparable(one: dict[int | None, str] | None, other: dict[int | None, str] | None) -> bool:
    """Whether two settings, as evaluations by seed, can be compared.

    They cannot without a seed that both have, because members failed; nor can a run with itself, under two names.
    """
    common = (one or {}).keys() & (other or {}).keys()
    return bool(one and other and any(one[seed] != other[seed] for seed in common))


def report_step(study: Study, analysis: ArtifactRef) -> ArtifactRef:
    """The page."""
    base = base_start(study, study.config)
    context = {"prepare": base.problems, "analysis": analysis}
    for traces, ref in study.traces.items():
        if traces.variant == "filtered" and traces.problems == base.problems.key:
            context.setdefault("filter", ref)
    context |= {f"choice: {name}": ref for name, ref in study.choices.items()}
    return write_report(study.workspace, study.config, study.evaluations, study.runs, context)
