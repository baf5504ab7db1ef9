"""From scored completions to the set that Expert Iteration fine-tunes on."""

from collections.abc import Sequence

from alignment_core.records import ScoredCompletion
from alignment_core.seeding import derive_seed


def select_correct(scored: Sequence[ScoredCompletion], max_per_problem: int, seed: int) -> list[ScoredCompletion]:
    """Completions of reward 1: no two with equal token ids in a problem, at most `max_per_problem` of each.

    Of too many, a draw by `seed` keeps some; it depends on the samples alone, not on their order or on other
    problems. Result in input order. Raises ValueError for a cap that is not positive.
    """
    if max_per_problem <= 0:
        raise ValueError(f"max_per_problem {max_per_problem} must be positive")
    by_problem: dict[str, list[int]] = {}
    for index in _distinct_correct(scored):
        by_problem.setdefault(scored[index].completion.problem_id, []).append(index)

    def draw(index: int) -> tuple[int, int]:
        completion = scored[index].completion
        return derive_seed(seed, "select", completion.problem_id, completion.sample_index), completion.sample_index

    kept = [index for indices in by_problem.values() for index in sorted(indices, key=draw)[:max_per_problem]]
    return [scored[index] for index in sorted(kept)]


def selection_report(scored: Sequence[ScoredCompletion], selected: Sequence[ScoredCompletion]) -> dict[str, int]:
    """Counts of what was sampled, correct, duplicate and kept, and of the problems asked and covered."""
    correct = sum(_is_correct(one) for one in scored)
    return {
        "sampled": len(scored),
        "correct": correct,
        "duplicates": correct - len(_distinct_correct(scored)),
        "kept": len(selected),
        "problems": len({one.completion.problem_id for one in scored}),
        "problems_covered": len({one.completion.problem_id for one in selected}),
    }


def _distinct_correct(scored: Sequence[ScoredCompletion]) -> list[int]:
    """Indices of correct completions; of equal token ids in a problem the lowest sample index stays."""
    chosen: dict[tuple[str, tuple[int, ...]], int] = {}
    for index, one in enumerate(scored):
        if not _is_correct(one):
            continue
        content = (one.completion.problem_id, tuple(one.completion.response_ids))
        rival = chosen.get(content)
        if rival is None or one.completion.sample_index < scored[rival].completion.sample_index:
            chosen[content] = index
    return sorted(chosen.values())


def _is_correct(one: ScoredCompletion) -> bool:
    return one.grade.reward == 1
