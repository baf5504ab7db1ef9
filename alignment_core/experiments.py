"""From the experiments of a study to their members: which settings, start and seed each training run has.

An experiment's members are every combination of its grid with every entry of its `members`, each for every seed. What
a winner decides is known only once there is one, so `members_of` is asked for one experiment at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import ValidationError

from alignment_core.manifest import canonical_json
from alignment_core.study_config import BASE, ExperimentConfig, Method, StudyConfig


@dataclass(frozen=True)
class Member:
    """One training run (or, for `evaluate`, one evaluation) of an experiment."""

    experiment: str
    group: str
    """Its name without the seed: what repetitions share."""
    seed: int
    method: Method
    start: str
    """`base`, or the group it starts from."""
    teacher: str | None
    """The group whose model writes its traces, if one of the study does."""
    varied: dict[str, Any]
    """The settings in which the experiment's members differ."""
    config: StudyConfig
    """The study's settings with this member's own; its `experiments` are empty."""

    @property
    def name(self) -> str:
        """Unique within the study."""
        return f"{self.group}/seed{self.seed}"


@dataclass(frozen=True)
class Variation:
    """One combination of settings of an experiment."""

    group: str
    varied: dict[str, Any]


def assign(settings: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted name; a mapping is merged into what is there, anything else replaces it."""
    if isinstance(value, Mapping) and value:
        for inner, item in value.items():
            assign(settings, f"{name}.{inner}", item)
        return
    *path, last = name.split(".")
    for part in path:
        inner = settings.get(part)
        if not isinstance(inner, dict):
            inner = settings[part] = {}
        settings = inner
    settings[last] = value


def with_settings(config: StudyConfig, *layers: Mapping[str, Any]) -> StudyConfig:
    """The settings with others, by dotted name, over them, validated; later layers win.

    Raises pydantic's ValidationError for a name or a value that does not exist.
    """
    settings = config.model_dump(exclude={"experiments"})
    for layer in layers:
        for name, value in layer.items():
            assign(settings, name, value)
    return StudyConfig.model_validate(settings)


def variations(experiment: ExperimentConfig) -> list[Variation]:
    """Every combination of settings, in the order in which the experiment lists them."""
    found = []
    names = tuple(experiment.grid)
    for own, settings in experiment.members.items() or [("", {})]:
        for values in product(*experiment.grid.values()):
            parts = [experiment.name, own, *map(_text, values)]
            varied = {**settings, **dict(zip(names, values, strict=True))}
            found.append(Variation("/".join(filter(None, parts)), varied))
    return found


def members_of(
    config: StudyConfig,
    experiment: ExperimentConfig,
    winners: Mapping[str, Variation],
    carried: Sequence[Mapping[str, Any]] = (),
) -> list[Member]:
    """The members of one experiment, seed by seed for each combination.

    winners: of earlier experiments with a choice, by name; carried: settings of the winners it carries.
    Raises ValidationError as `with_settings` does, ValueError for members that would compute the same.
    """
    seeds = config.seeds if experiment.seeds is None else experiment.seeds
    members = [
        Member(
            experiment=experiment.name,
            group=one.group,
            seed=seed,
            method=experiment.method,
            start=_winner_or_member(experiment.start, winners),
            teacher=experiment.teacher and _winner_or_member(experiment.teacher, winners),
            varied=one.varied,
            config=with_settings(config, *carried, experiment.settings, one.varied),
        )
        for one in variations(experiment)
        for seed in seeds
    ]
    _require_distinct(members)
    return members


SECTIONS: dict[Method, set[str]] = {
    "sft": {"sft", "examples", "distillation"},
    "expert_iteration": {"expert_iteration"},
    "grpo": {"grpo", "budget"},
    "dpo": {"dpo", "pairs"},
    "evaluate": set(),
}
"""The settings that one method alone reads."""
OF_THE_STUDY = {"name", "description", "question", "plain_prompt", "seeds", "only"}
"""The settings that no member reads."""


def _require_distinct(members: Sequence[Member]) -> None:
    """Refuse members that differ in settings which nothing they do depends on."""
    first: dict[tuple[int, str], Member] = {}
    for member in members:
        same = first.setdefault((member.seed, canonical_json(_settings_read(member))), member)
        if same is not member:
            names = {name for one in (same, member) for name in one.varied}
            changed = sorted(name for name in names if same.varied.get(name) != member.varied.get(name))
            why = f"{', '.join(changed)} changes nothing there" if changed else "they have the same settings"
            raise ValueError(
                f"{same.group} and {member.group} would compute the same: {why}. "
                "Leave one out, or set what makes it count"
            )


def _settings_read(member: Member) -> dict[str, Any]:
    """What a member computes depends on these settings, and on where it starts."""
    unread = OF_THE_STUDY.union(*SECTIONS.values()) - SECTIONS[member.method]
    if member.config.examples.variant != "distilled":
        unread.add("distillation")
    return {name: value for name, value in member.config.key_settings().items() if name not in unread}


def contrasts(config: StudyConfig, winners: Mapping[str, Variation]) -> list[tuple[str, str]]:
    """Pairs of members to be compared, without seeds: each with the first listed, and with those it is set against."""
    pairs = []
    for experiment in config.experiments:
        first, *others = [one.group for one in variations(experiment)]
        named = [_winner_or_member(name, winners) for name in experiment.against]
        pairs += [(other, first) for other in others]
        pairs += [(own, name) for own in (first, *others) for name in named if own != name]
    return list(dict.fromkeys(pairs))


def _winner_or_member(name: str, winners: Mapping[str, Variation]) -> str:
    """The member that a name in the study stands for: of an experiment with a choice, the winner."""
    return winners[name].group if name in winners else name


def carried_settings(
    config: StudyConfig, experiment: ExperimentConfig, winners: Mapping[str, Variation]
) -> list[dict[str, Any]]:
    """What an experiment takes from the winners it carries: their experiment's settings, then their own."""
    by_name = {one.name: one for one in config.experiments}
    layers: list[dict[str, Any]] = []
    for name in experiment.carry:
        layers += [by_name[name].settings, winners[name].varied]
    return layers


def check_experiments(config: StudyConfig) -> None:
    """Raise ValueError for experiments that cannot be: unknown starts, repeated names, wrong settings.

    Winners to come are taken to be the first listed, and then each other in turn, so that no winner makes an experiment
    impossible that waits for it.
    """
    groups: dict[str, tuple[int, ...]] = {}
    winners: dict[str, Variation] = {}
    for experiment in config.experiments:
        seeds = config.seeds if experiment.seeds is None else experiment.seeds
        _check_before(experiment, "starts from", experiment.start, seeds, groups, winners)
        if experiment.teacher is not None:
            _check_before(experiment, "learns from the teacher", experiment.teacher, seeds, groups, winners)
        for name in experiment.against:
            _check_before(experiment, "is compared with", name, (), groups, winners)
        for name in experiment.carry:
            if name not in winners:
                raise ValueError(
                    f"experiment {experiment.name!r} carries {name!r}, which is no earlier experiment with a choice: "
                    f"{_known(winners)}"
                )
        found = variations(experiment)
        for one in found:
            if one.group in groups:
                raise ValueError(f"two members of the experiments are called {one.group!r}: give each its own name")
            groups[one.group] = seeds
        for possible in _outcomes(config, experiment, winners):
            try:
                for member in members_of(config, experiment, possible, carried_settings(config, experiment, possible)):
                    _check_trainable(member)
            except ValidationError as error:
                error.add_note(f"experiment {experiment.name!r}{_if_carried(experiment, possible)}")
                raise
            except ValueError as error:
                raise ValueError(f"{error}{_if_carried(experiment, possible)}") from None
        if experiment.choice is not None:
            winners[experiment.name] = found[0]
    names = [experiment.name for experiment in config.experiments]
    for wanted in config.only or ():
        if not any(_within(name, wanted) for name in names):
            raise ValueError(f"only: no experiment is called {wanted!r}: {_known(names)}")


def _outcomes(
    config: StudyConfig, experiment: ExperimentConfig, winners: Mapping[str, Variation]
) -> Iterator[Mapping[str, Variation]]:
    """The first listed as winners everywhere, then every other member of what the experiment carries, one at a time."""
    yield winners
    for earlier in config.experiments:
        if earlier.name in experiment.carry:
            for other in variations(earlier)[1:]:
                yield {**winners, earlier.name: other}


def _if_carried(experiment: ExperimentConfig, winners: Mapping[str, Variation]) -> str:
    """Under which winners something was found, for an error."""
    carried = ", ".join(winners[name].group for name in experiment.carry)
    return f" (carrying {carried})" if carried else ""


def _check_trainable(member: Member) -> None:
    """Refuse sampling that GRPO cannot train on, greedy evaluation alone being fine, and traces that nobody writes."""
    sampling = member.config.sampling
    distilled = member.method == "sft" and member.config.examples.variant == "distilled"
    if distilled and member.teacher is None and member.config.distillation.teacher is None:
        raise ValueError(
            f"{member.group}: examples.variant is 'distilled': give distillation.teacher, the model that writes the "
            "traces, or `teacher`, an earlier experiment"
        )
    if member.method == "grpo" and (sampling.temperature == 0 or sampling.top_p != 1):
        raise ValueError(
            f"{member.group}: GRPO trains on samples of the policy itself: set sampling.top_p to 1 and "
            "sampling.temperature above 0, or take it out of the experiments"
        )


def _check_before(
    experiment: ExperimentConfig,
    uses: str,
    name: str,
    seeds: tuple[int, ...],
    groups: Mapping[str, tuple[int, ...]],
    winners: Mapping[str, Variation],
) -> None:
    group = _winner_or_member(name, winners)
    if group == BASE:
        return
    if group not in groups:
        raise ValueError(
            f"experiment {experiment.name!r} {uses} {name!r}, which is neither 'base' nor a member of an earlier "
            f"experiment: {_known([*winners, *groups])}"
        )
    if lacking := sorted(set(seeds) - set(groups[group])):
        raise ValueError(
            f"experiment {experiment.name!r} {uses} {name!r}, which has no seed {lacking[0]}: give both the same"
        )


def selected(config: StudyConfig, method: Method | None = None) -> tuple[ExperimentConfig, ...]:
    """The experiments that `only` names, or of one method, and what those start from or carry, in the study's order."""
    by_group = {one.group: experiment for experiment in config.experiments for one in variations(experiment)}
    by_group |= {experiment.name: experiment for experiment in config.experiments}
    wanted: list[str] = []

    def want(experiment: ExperimentConfig) -> None:
        if experiment.name not in wanted:
            wanted.append(experiment.name)
            for name in experiment.waits_for:
                if name != BASE:
                    want(by_group[name])

    for experiment in config.experiments:
        named = config.only is None or any(_within(experiment.name, name) for name in config.only)
        if named and method in (None, experiment.method):
            want(experiment)
    return tuple(one for one in config.experiments if one.name in wanted)


def _within(name: str, wanted: str) -> bool:
    """Whether `grpo/lr` is `grpo/lr` or lies below `grpo`."""
    return name == wanted or name.startswith(f"{wanted}/")


def waves(experiments: Sequence[ExperimentConfig]) -> Iterator[tuple[ExperimentConfig, ...]]:
    """The experiments in groups that wait for nothing but the groups before."""
    depth: dict[str, int] = {BASE: 0}
    levels: dict[int, list[ExperimentConfig]] = {}
    for experiment in experiments:
        level = 1 + max(depth[name] for name in experiment.waits_for)
        depth |= {one.group: level for one in variations(experiment)} | {experiment.name: level}
        levels.setdefault(level, []).append(experiment)
    yield from (tuple(levels[level]) for level in sorted(levels))


def _text(value: object) -> str:
    """A value as part of a name."""
    if isinstance(value, bool):
        return str(value).lower()
    return "-".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)


def _known(names: Sequence[str] | Mapping[str, Any]) -> str:
    return f"there are {', '.join(names)}" if names else "there is none"
