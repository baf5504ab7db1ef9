"""The figures of a page's results, as SVG text: members, data set sizes, Expert Iteration rounds, categories."""

from collections.abc import Mapping, Sequence

from alignment_core.analysis import ROUND, Analysis, EvaluationRow
from alignment_core.chart import Axis, Panel, linear_axis, log_axis, rows_axis, rows_height
from alignment_core.drawing import Figure, Look, color, line_legend, look, patch_legend, short
from alignment_core.report_answers import ExperimentAnswer, MemberAnswer

_START = Look(color(5), "3 3", "ring")
_CATEGORIES = {
    "1,1": ("formatted, right", 0),
    "1,0": ("formatted, wrong", 1),
    "0,0": ("unformatted", 5),
    "0,1": ("right without the format", 3),
}
_MEANS = "A dot per seed; the line is the 95 % interval of the mean, the bar on it the mean."
Placed = tuple[float, EvaluationRow]
"""An evaluation and its x."""


def members_figure(answer: ExperimentAnswer) -> Figure:
    """Accuracy of every member: a dot per seed, the interval of the mean; what they started from as dashed lines."""
    members = answer.done
    starts = {row.group: row for row in answer.starts if row.group not in {member.group for member in members}}
    title, subject = "Accuracy of each member", answer.outline.name
    if not members:
        return Figure(title, [], [], "No member has been evaluated.", subject)
    reached = [100 * value for member in members for value in _extent(member)]
    reached += [100 * row.report.accuracy for row in starts.values()]
    names = [f"{short(member.label)} ★" if member.chosen else short(member.label) for member in members]
    panel = Panel(linear_axis("Accuracy (%)", reached), rows_axis(names), rows_height(len(names)))
    for row in starts.values():
        at = 100 * row.report.accuracy
        panel.span((at, panel.y.low), (at, panel.y.high), _START, 1.2)
    for place, member in enumerate(members):
        _member_row(panel, -float(place), member)
    problems = sorted({row.report.n for member in members for row in member.rows})
    told = " or ".join(f"{count:,}" for count in problems)
    caption = f"{_MEANS} {told} responses each."
    if starts:
        caption += f" Dashed: {', '.join(starts)}, which they start from."
    if any(len(member.rows) == 1 for member in members):
        caption += " Of a single seed, the interval is over problems alone."
    if any(member.chosen for member in members):
        caption += " ★: taken on."
    if lacking := [member.label for member in members if member.interval is None]:
        caption += f" No interval over seeds was worked out for {', '.join(lacking)}."
    return Figure(title, [panel.svg(f"{subject}: accuracy of each member, with 95 % intervals")], [], caption, subject)


def _extent(member: MemberAnswer) -> list[float]:
    ends = [member.interval.low, member.interval.high] if member.interval else []
    return ends + [row.report.accuracy for row in member.rows]


def _member_row(panel: Panel, y: float, member: MemberAnswer) -> None:
    how = Look(color(0 if not member.chosen else 1), "", "circle")
    if member.interval is not None:
        panel.span((100 * member.interval.low, y), (100 * member.interval.high, y), how, 2.0)
    mean = 100 * (member.accuracy or 0.0)
    panel.span((mean, y - 0.22), (mean, y + 0.22), how, 2.0)
    for turn, row in enumerate(member.rows):
        offset = (turn - (len(member.rows) - 1) / 2) * min(0.16, 0.5 / len(member.rows))
        title = f"{row.name}: {100 * row.report.accuracy:.1f} %"
        panel.mark((100 * row.report.accuracy, y - offset), how, 3.2, title)


def size_figure(answer: ExperimentAnswer) -> Figure | None:
    """Accuracy against the number of SFT examples, a line per combination of the other settings; None without sizes."""
    sized = [member for member in answer.done if member.rows[0].size is not None]
    if answer.outline.method != "sft" or len({member.rows[0].size for member in sized}) < 2:
        return None
    lines: dict[str, list[MemberAnswer]] = {}
    for member in sized:
        others = [value for name, value in member.varied.items() if name != "examples.size"]
        lines.setdefault(", ".join(others) or "all", []).append(member)
    x = log_axis("SFT examples (logarithmic)", [float(member.rows[0].size or 1) for member in sized])
    reached = [100 * value for member in sized for value in _extent(member)]
    panel = Panel(x, linear_axis("Accuracy (%)", reached, 0.0), 230)
    for index, members in enumerate(lines.values()):
        _size_line(panel, index, sorted(members, key=lambda member: member.rows[0].size or 0))
    title, subject = "Accuracy and data set size", answer.outline.name
    caption = f"{_MEANS} Lines join the means."
    return Figure(title, [panel.svg(f"{subject}: {title.lower()}")], line_legend(list(lines)), caption, subject)


def _size_line(panel: Panel, index: int, members: Sequence[MemberAnswer]) -> None:
    placed = [(float(member.rows[0].size or 1), member) for member in members]
    panel.line([(x, 100 * (member.accuracy or 0.0)) for x, member in placed], look(index))
    for x, member in placed:
        if member.interval is not None:
            panel.span((x, 100 * member.interval.low), (x, 100 * member.interval.high), look(index))
        for row in member.rows:
            panel.mark(
                (x, 100 * row.report.accuracy), look(index), 3.0, f"{row.name}: {100 * row.report.accuracy:.1f} %"
            )


def rounds_figure(answer: ExperimentAnswer, analysis: Analysis) -> Figure | None:
    """Accuracy, and entropy where known, round by round of Expert Iteration; None for other methods."""
    chains = {member.label: _rounds(member, analysis) for member in answer.done if member.rows[0].method == "ei"}
    if not any(len(rounds) > 1 for rounds in chains.values()):
        return None
    steps = [step for rounds in chains.values() for step, _ in rounds]
    x = linear_axis("Expert Iteration round", steps, 0.0, whole=True)
    title, subject = "Round by round", answer.outline.name
    bounds = [
        100 * bound
        for rounds in chains.values()
        for _, row in rounds
        for bound in (row.report.accuracy_low, row.report.accuracy_high)
    ]
    panels = [_rounds_panel(chains, x, linear_axis("Accuracy (%)", bounds, 0.0), subject, entropy=False)]
    caption = "Round 0 is what the first round starts from; lines join the means over seeds. 95 % Wilson intervals."
    entropies = [row.report.mean_entropy for rounds in chains.values() for _, row in rounds]
    known = [value for value in entropies if value is not None]
    if len(known) == len(entropies):
        y = linear_axis("Entropy (nats per token)", known, 0.0)
        panels.append(_rounds_panel(chains, x, y, subject, entropy=True))
    else:
        caption += " Entropy was not recorded."
    return Figure(title, panels, line_legend(list(chains)), caption, subject)


def _rounds(member: MemberAnswer, analysis: Analysis) -> list[Placed]:
    """Every round of a member's runs, led by what its first round started from."""
    rows = {row.name: row for row in analysis.evaluations}
    finals = {row.name for row in member.rows}
    found = [
        (float(row.step), row)
        for row in analysis.evaluations
        if row.step is not None and ROUND.sub("", row.name) in finals
    ]
    if found and min(step for step, _ in found) > 0:
        starts = dict.fromkeys(row.start for row in member.rows if row.start in rows)
        found += [(0.0, rows[start]) for start in starts if start]
    return sorted(found, key=lambda placed: placed[0])


def _rounds_panel(chains: Mapping[str, Sequence[Placed]], x: Axis, y: Axis, subject: str, entropy: bool) -> str:
    panel = Panel(x, y)
    for index, rounds in enumerate(chains.values()):
        values: dict[float, list[float]] = {}
        for step, row in rounds:
            report = row.report
            value = (report.mean_entropy or 0.0) if entropy else 100 * report.accuracy
            values.setdefault(step, []).append(value)
            if not entropy:
                panel.span((step, 100 * report.accuracy_low), (step, 100 * report.accuracy_high), look(index), 1.3)
            panel.mark((step, value), look(index), 3.0, f"{row.name}: {value:.3g}")
        panel.line([(step, sum(found) / len(found)) for step, found in values.items()], look(index))
    return panel.svg(f"{subject}, round by round: {y.label}")


def categories_figure(analysis: Analysis) -> Figure:
    """Shares of the (format, answer) categories of every setting, over its seeds, as stacked bars."""
    rows = {row.name: row for row in analysis.evaluations}
    groups = [group for group in analysis.groups if not ROUND.search(group.group)]
    shares = [_category_shares([rows[name] for name in group.members]) for group in groups]
    used = [kind for kind in _CATEGORIES if any(share[kind] for share in shares)]
    names = [short(group.group) for group in groups]
    panel = Panel(linear_axis("Share of responses (%)", [0.0, 100.0]), rows_axis(names), rows_height(len(names)))
    for place, share in enumerate(shares):
        left = 0.0
        for kind in used:
            words, hue = _CATEGORIES[kind]
            title = f"{names[place]}: {words} {share[kind]:.1f} %"
            panel.bar(left, left + share[kind], -float(place), Look(color(hue), "", ""), title)
            left += share[kind]
    legend = patch_legend([_CATEGORIES[kind][0] for kind in used], [_CATEGORIES[kind][1] for kind in used])
    svg = panel.svg("Response categories of each evaluation")
    return Figure("Response categories", [svg], legend, "Shares of all responses; seeds of one setting are pooled.")


def _category_shares(rows: Sequence[EvaluationRow]) -> dict[str, float]:
    """Per cent of each category over several evaluations together."""
    total = sum(row.report.n for row in rows)
    return {kind: 100 * sum(row.report.categories.get(kind, 0) for row in rows) / total for kind in _CATEGORIES}
