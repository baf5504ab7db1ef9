"""What stages make of each other's folders."""

from itertools import pairwise
from pathlib import Path

import pytest
from tiny_models import byte_tokenizer

from alignment_core.records import Problem, write_jsonl
from alignment_core.stages.artifacts import read_examples
from alignment_core.stages.sft import nested_subset

TOKENIZER = byte_tokenizer()


def problem(trace: str) -> Problem:
    """A problem with a trace."""
    return Problem(id=trace, question="q", prompt="q <think>", ground_truth="1", trace=trace)


@pytest.mark.parametrize(
    ("trace", "ended"),
    [(" so </think> <answer> 1 </answer>", True), ("so \\boxed{1}", False), (" </answer> and", False)],
)
def test_a_trace_that_no_stop_string_ends_is_taught_to_end(tmp_path: Path, trace: str, ended: bool) -> None:
    write_jsonl(tmp_path / "traces.jsonl", [problem(trace)])
    example = read_examples(tmp_path, TOKENIZER, ("</answer>",))[0]
    assert (example.response_ids[-1] != TOKENIZER.eos_token_id) == ended
    assert example.response_ids.count(TOKENIZER.eos_token_id) == (not ended)


def test_smaller_subsets_are_contained_in_larger_ones(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "traces.jsonl", [problem(f" {n}") for n in range(50)])
    examples = read_examples(tmp_path, TOKENIZER, ())
    subsets = [nested_subset(examples, size, seed=3) for size in (8, 16, 32, None)]
    for smaller, larger in pairwise(subsets):
        assert larger[: len(smaller)] == smaller
    assert sorted(map(repr, subsets[-1])) == sorted(map(repr, examples))
    assert nested_subset(examples, 8, seed=4) != subsets[0]
    with pytest.raises(ValueError, match="lower it or use 'full'"):
        nested_subset(examples, 51, seed=3)
