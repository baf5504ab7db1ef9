"""Stage `few_shot`: the worked examples of a few-shot evaluation."""

from collections.abc import Mapping
from pathlib import Path

from alignment_core.few_shot import find_examples
from alignment_core.records import write_jsonl
from alignment_core.runs import RunContext
from alignment_core.stage_config import FewShotStage
from alignment_core.stages.splits import read_split

CONFIG = FewShotStage


def run(config: FewShotStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write examples.jsonl; raises ValueError where they would be drawn from the very problems that are asked."""
    if config.split == "train" and config.source is None:
        raise ValueError(
            "few-shot examples are drawn from the train split, which is asked itself: set evaluation.split to dev or "
            "test, or give evaluation.few_shot.source"
        )
    train = read_split(inputs["problems"], "train") if config.source is None else []
    examples = find_examples(config, train, read_split(inputs["problems"], config.split))
    write_jsonl(output / "examples.jsonl", examples)
    run.emit(0, {"few_shot/examples": float(len(examples))})
