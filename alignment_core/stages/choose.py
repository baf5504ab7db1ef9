"""Stage `choose`: the winner among the members of an experiment."""

from collections.abc import Mapping
from pathlib import Path

from alignment_core.choosing import choose
from alignment_core.runs import RunContext
from alignment_core.stage_config import ChooseStage
from alignment_core.stages.analyze import read_outcomes

CONFIG = ChooseStage


def run(config: ChooseStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write choice.json."""
    outcomes = {
        group: [
            {problem: correct for problem, (_, correct) in read_outcomes(graded).items()}
            for name, graded in inputs.items()
            if name.rpartition("/seed")[0] == group
        ]
        for group in config.candidates
    }
    choice = choose(outcomes, config.rule)
    (output / "choice.json").write_text(choice.model_dump_json(indent=1), encoding="utf-8")
    run.emit(0, {f"choose/{one.group}/accuracy": one.accuracy for one in choice.candidates})
