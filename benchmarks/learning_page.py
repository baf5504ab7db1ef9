"""From the results of `benchmarks.learning` to its page: verdicts, tables, one figure. Runs no model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from alignment_core.drawing import COLORS
from alignment_core.policy_gradient import updates_per_step
from alignment_core.statistics import holm, mcnemar_exact, paired_bootstrap, wilson_interval
from alignment_core.training_config import GRPOConfig
from benchmarks.learning_variants import DPO, MAIN, VARIANTS, Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OPEN, CLOSE = "<!-- tables: made by --page -->", "<!-- end of tables -->"
ALPHA, WORTH = 0.05, 0.05
RULE = (
    f"A variant **learns** if on every seed its test accuracy is above its start's with p < {ALPHA} (exact McNemar "
    "over the test problems, Holm's correction over all runs of this page); it **does not learn** if on every seed the "
    f"95 % interval of its gain (paired bootstrap) ends below {100 * WORTH:.0f} points; otherwise we **cannot tell**."
)
DIAGNOSES = {
    "entropy": "entropy, nats",
    "grad_norm": "gradient norm",
    "ratio_max": "largest ratio",
    "approx_kl": "KL to the rollout's policy",
    "clip_fraction_low": "clipped low",
    "clip_fraction_high": "clipped high",
    "zero_variance_share": "groups of equal reward",
    "mean_length": "length",
}
MEANING = (
    "Means over seeds: of entropy and length over the last five steps, of the others over all steps; the largest ratio "
    "is that of all steps and seeds. A dash: the value never changed, as ratios do not on-policy."
)
COLUMNS, PANEL = 4, (3.0, 2.35)


@dataclass(frozen=True)
class Gain:
    """One run against its start, over the same test problems."""

    seed: int
    right: int
    n: int
    formatted: float
    gain: float
    interval: tuple[float, float]
    p: float
    """Of this comparison alone."""

    @property
    def accuracy(self) -> str:
        """In percent, with its Wilson interval."""
        return share(self.right, self.n)


def share(right: int, n: int) -> str:
    """`74.2 (70.2–77.8)`, percent."""
    low, high = wilson_interval(right, n)
    return f"{100 * right / n:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def gains(results: Mapping[str, Any], variant: Variant) -> list[Gain]:
    """The variant's finished runs, by seed."""
    found = []
    for name, run in results["runs"].items():
        kind, start, seed = name.split("/")
        if (kind, start) == (variant.name, variant.start):
            found.append(compared(results["starts"][f"{start}/{seed}"]["test"], run["test"], int(seed)))
    return sorted(found, key=lambda one: one.seed)


def compared(start: str, end: str, seed: int) -> Gain:
    """Outcomes (0 no format, 1 wrong, 2 right) of the same problems before and after."""
    before, after = ([float(outcome == "2") for outcome in outcomes] for outcomes in (start, end))
    lost = sum(was > now for was, now in zip(before, after, strict=True))
    won = sum(was < now for was, now in zip(before, after, strict=True))
    interval = paired_bootstrap(after, before, seed=0)
    n = len(end)
    formatted = (n - end.count("0")) / n
    return Gain(seed, end.count("2"), n, formatted, (won - lost) / n, interval, mcnemar_exact(lost, won))


def verdict(runs: Sequence[Gain], corrected: Sequence[float]) -> str:
    """By `RULE`; `corrected` are the runs' p-values after Holm."""
    if all(run.gain > 0 and p < ALPHA for run, p in zip(runs, corrected, strict=True)):
        return "learns"
    if all(run.interval[1] < WORTH for run in runs):
        return "does not learn"
    return "cannot tell"


def write_page(results: Mapping[str, Any], folder: Path) -> None:
    """Draw learning.png and put the tables into learning.md, whose prose is kept where it exists."""
    folder.mkdir(parents=True, exist_ok=True)
    draw(results, folder / "learning.png")
    page = folder / "learning.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else f"# Does it learn?\n\n{OPEN}\n{CLOSE}\n"
    head, _, rest = text.partition(OPEN)
    _, _, tail = rest.partition(CLOSE)
    page.write_text(f"{head}{OPEN}\n\n{tables(results)}\n\n{CLOSE}{tail}", encoding="utf-8")


def tables(results: Mapping[str, Any]) -> str:
    """Origin, rule, and the three tables."""
    origin = ", ".join(f"{name} {value}" for name, value in results["provenance"].items() if name != "machine")
    parts = [
        f"Machine: {results['provenance']['machine']}. Versions: {origin}.",
        "![dev accuracy of every variant](learning.png)",
        "## Starts\n\nOne sample of each test problem, with 95 % Wilson intervals.\n\n" + table(*start_rows(results)),
        "## Verdicts\n\n" + RULE + "\n\n" + table(*verdict_rows(results)),
        "## How they trained\n\n" + MEANING + "\n\n" + table(*diagnosis_rows(results)),
    ]
    return "\n\n".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def start_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Every start model under the test problems."""
    rows = []
    for name, start in results["starts"].items():
        outcomes, plain = start["test"], start.get("plain_accuracy")
        right, n = outcomes.count("2"), len(outcomes)
        formatted = n - outcomes.count("0")
        of_formatted = share(right, formatted) if formatted else "–"
        told = "–" if plain is None else share(round(plain * n), n)
        rows.append([name, share(right, n), f"{100 * formatted / n:.1f}", of_formatted, told])
    head = ["start/seed", "accuracy, %", "formatted, %", "accuracy of the formatted, %", "asked plainly, %"]
    return head, sorted(rows)


def verdict_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Every variant with a finished run."""
    finished = [(variant, runs) for variant in VARIANTS if (runs := gains(results, variant))]
    corrected = iter(holm([run.p for _, runs in finished for run in runs]))
    seeds = sorted({run.seed for _, runs in finished for run in runs})
    rows = []
    for variant, runs in finished:
        adjusted = [next(corrected) for _ in runs]
        by_seed = {run.seed: run.accuracy for run in runs}
        change = [100 * run.gain for run in runs]
        lowest, highest = min(100 * run.interval[0] for run in runs), max(100 * run.interval[1] for run in runs)
        rows.append([
            variant.label, variant.start, steps_and_updates(results, variant),
            *(by_seed.get(seed, "–") for seed in seeds),
            f"{mean(change):+.1f} ({lowest:+.1f} to {highest:+.1f})", f"{max(adjusted):.1g}",
            f"{100 * mean(run.formatted for run in runs):.1f}", verdict(runs, adjusted),
        ])  # fmt: skip
    head = ["variant", "start", "steps × updates", *(f"seed {seed}: accuracy, %" for seed in seeds)]
    return [*head, "mean gain, points (widest interval)", "largest p, corrected", "formatted, %", "verdict"], rows


def runs_of(results: Mapping[str, Any], variant: Variant) -> list[dict[str, Any]]:
    """The variant's finished runs, by seed."""
    prefix = f"{variant.name}/{variant.start}/"
    names = [name for name in results["runs"] if name.startswith(prefix)]
    return [results["runs"][name] for name in sorted(names)]


def steps_and_updates(results: Mapping[str, Any], variant: Variant) -> str:
    """`15 × 4`: rollout steps, and optimizer steps in each."""
    runs = runs_of(results, variant)
    last = sorted({run["curve"]["step"][-1] for run in runs})
    shown = "–".join(str(step) for step in dict.fromkeys((last[0], last[-1])))
    if variant.name == DPO:
        return f"{shown} updates"
    return f"{shown} × {updates_per_step(GRPOConfig(**runs[0]['settings']))}"


def diagnosis_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """What the loop said of itself, for variants of policy gradients."""
    rows = []
    for variant in VARIANTS:
        runs = runs_of(results, variant)
        if runs and variant.name != DPO:
            rows.append([variant.label, *(diagnosis(runs, name) for name in DIAGNOSES)])
    return ["variant", *DIAGNOSES.values()], rows


def diagnosis(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    """One cell: a maximum, an end, or a mean, over seeds; a dash where a run's value never varied."""
    series = [run["steps"][name] for run in runs if name in run["steps"]]
    if not series:
        return "–"
    if name == "ratio_max":
        return f"{max(max(values) for values in series):.3g}"
    if name in ("entropy", "mean_length"):
        return f"{mean(mean(values[-5:]) for values in series):.3g}"
    return f"{mean(mean(values) for values in series):.2g}"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Small multiples: the dev accuracy of every variant, seed by seed, beside the main variant's mean."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [variant for variant in VARIANTS if runs_of(results, variant)]
    rows = -(-len(shown) // COLUMNS)
    with matplotlib.rc_context({"font.size": 8.5, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(COLUMNS * PANEL[0], rows * PANEL[1] + 0.5), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, COLUMNS, squeeze=False, sharey=True)
        for place, axes in enumerate(grid.flat):
            if place < len(shown):
                paint(axes, results, shown[place])
            else:
                axes.set_visible(False)
        for row in grid:
            row[0].set_ylabel("dev accuracy, %")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        figure.savefig(path, dpi=130)


def paint(axes: "Axes", results: Mapping[str, Any], variant: Variant) -> None:
    """One panel."""
    color = COLORS[1] if variant.start == "sft" else COLORS[0]
    reference = runs_of(results, next(one for one in VARIANTS if (one.name, one.start) == (MAIN, variant.start)))
    runs = gains(results, variant)
    for run, marker in zip(runs, "o^s*Dv", strict=False):
        curve = results["runs"][f"{variant.name}/{variant.start}/{run.seed}"]["curve"]
        axes.plot(
            curve["step"], [100 * value for value in curve["accuracy"]], color=color, marker=marker, markersize=3.5,
            linewidth=1.1, label=f"seed {run.seed}",
        )  # fmt: skip
    if reference and variant.name != DPO:
        steps = reference[0]["curve"]["step"]
        level = [100 * mean(run["curve"]["accuracy"][at] for run in reference) for at in range(len(steps))]
        axes.plot(steps, level, color="#5b6270", linestyle="--", linewidth=1.2, label="main variant, same start, mean")
    axes.set_title(variant.label, fontsize=9, loc="left")
    axes.set_ylim(0, 100)
    axes.grid(color="#d9dce1", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("optimizer step" if variant.name == DPO else "rollout step")
    start = mean((run.right / run.n - run.gain) for run in runs)
    end = mean(run.right / run.n for run in runs)
    axes.text(
        0.97, 0.05, f"test {100 * start:.1f} → {100 * end:.1f} %", transform=axes.transAxes, ha="right",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
    )  # fmt: skip
