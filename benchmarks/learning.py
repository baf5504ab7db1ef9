"""Does it learn? GRPO and its variants on the tiny model: dev curves, test accuracy, paired tests against the start.

    python -m benchmarks.learning --out results.json [--seeds 0,1,2] [--steps 50] [--variants NAME,NAME]

Each seed has a base model of its own, pretrained on the spot by the study's stages (half a minute), and the same 500
test problems. The file is complete after every run; a run that is in it with the same settings is not run again, so a
killed call goes on where it was. One process, one thread. `--page FOLDER` draws the page from the file, without
running anything that is missing.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from alignment_core.study_config import StudyConfig
from benchmarks.learning_page import write_page
from benchmarks.learning_variants import DPO, Variant, dpo_settings, grpo_settings, planned
from benchmarks.learning_work import Bench, load, outcomes_of, plain_accuracy, train
from flows.settings import load_config

PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


def measure(
    study: StudyConfig, options: argparse.Namespace, say: Callable[[str], None] = lambda text: print(text, flush=True)
) -> dict[str, Any]:
    """Run what is not in the results file yet; return its content."""
    results = opened(options.out, study)
    bench = Bench(study, options.work)
    for variant, seed in planned(options.variants, options.seeds):
        name = f"{variant.name}/{variant.start}/{seed}"
        config = settings(study, variant, options)
        wanted = config.model_dump(mode="json", exclude_defaults=True)
        if results["runs"].get(name, {}).get("settings") == wanted:
            continue
        measure_start(bench, variant.start, seed, results, options.out)
        found = train(bench, variant.start, seed, config)
        results["runs"][name] = {"settings": wanted, **found}
        keep(options.out, results)
        say(f"{time.strftime('%H:%M:%S')} {name}: {shown(found['test'])}, {found['seconds']} s")
    return results


def settings(study: StudyConfig, variant: Variant, options: argparse.Namespace) -> Any:
    """What the variant's loop receives."""
    if variant.name == DPO:
        return dpo_settings(options.validation)
    return grpo_settings(study, variant, options.steps, options.validation)


def measure_start(bench: Bench, start: str, seed: int, results: dict[str, Any], out: Path) -> None:
    """The test problems under a start model, once."""
    if f"{start}/{seed}" in results["starts"]:
        return
    model, tokenizer = load(bench.start(start, seed))
    found: dict[str, Any] = {"test": outcomes_of(bench, model, tokenizer)}
    if start == "base":
        found["plain_accuracy"] = plain_accuracy(bench, model, tokenizer)
    results["starts"][f"{start}/{seed}"] = found
    keep(out, results)


def opened(path: Path, study: StudyConfig) -> dict[str, Any]:
    """The results so far, or none. Raises ValueError for those of another study."""
    # The runs' settings are compared one by one; the rest of the study makes start models and problems.
    told = study.model_dump(mode="json", exclude={"grpo", "seeds", "experiments", "expert_iteration"})
    if not path.is_file():
        return {"provenance": provenance(), "study": told, "starts": {}, "runs": {}}
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if results["study"] != told:
        raise ValueError(f"{path} holds results of another study: give another --out")
    return results


def keep(path: Path, results: dict[str, Any]) -> None:
    """Replace the file in one step; a run is one line of it."""
    parts = []
    for name, value in results.items():
        if name in ("starts", "runs"):
            rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in value.items())
            parts.append(f"{json.dumps(name)}: {{\n{rows}\n}}")
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(value)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    part.replace(path)


def provenance() -> dict[str, Any]:
    """Machine and versions."""
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def processor() -> str:
    """The CPU's name where Linux tells it."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def shown(outcomes: str) -> str:
    """Accuracy and format rate in words."""
    right, formatted = outcomes.count("2"), len(outcomes) - outcomes.count("0")
    return f"{right / len(outcomes):.1%} right, {formatted / len(outcomes):.1%} formatted"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results, JSON; gone on with where it exists")
    parser.add_argument("--preset", default="tiny", help="whose settings; a shipped name or a YAML file")
    parser.add_argument("--work", type=Path, default=Path("data/learning"), help="folder of the start models")
    parser.add_argument("--seeds", type=lambda text: [int(one) for one in text.split(",")], default=[0, 1, 2])
    parser.add_argument(
        "--steps", type=int, default=50, help="rollout steps of the main variant; off-policy ones take 2/5, others 4/5"
    )
    parser.add_argument("--variants", type=lambda text: text.split(","), help="names; all by default")
    parser.add_argument("--validation", type=int, default=300, help="dev problems of each point of a curve")
    parser.add_argument("--page", type=Path, help="folder for learning.md and learning.png, from the file as it is")
    return parser.parse_args(arguments)


def main() -> None:
    """Run what is missing, or draw the page."""
    options = parse_arguments()
    torch.set_num_threads(1)
    if options.page is not None:
        write_page(json.loads(options.out.read_text(encoding="utf-8")), options.page)
        return
    try:
        measure(load_config(options.preset), options)
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
