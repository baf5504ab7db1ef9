"""Stage `sample`: completions for the problems of a split, in chunks that a killed run does not repeat."""

import random
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from alignment_core.comparability import asked_terms
from alignment_core.completion_entropy import with_entropy
from alignment_core.models import load_model, load_tokenizer
from alignment_core.prompts import render, render_few_shot
from alignment_core.records import Completion, Example, Problem, read_jsonl, write_jsonl
from alignment_core.runs import RunContext
from alignment_core.sampling import PromptRequest, Sampler, build_requests, make_sampler
from alignment_core.stage_config import SampleStage
from alignment_core.stages.artifacts import model_location
from alignment_core.stages.splits import of_subset, read_split

CONFIG = SampleStage
CHUNK_BATCHES = 4
"""Decode batches between two points at which the stage may save."""


def run(config: SampleStage, inputs: Mapping[str, Path], output: Path, run: RunContext) -> None:
    """Write problems.jsonl, as they were asked, and completions.jsonl: the samples of a problem side by side."""
    source, revision = model_location(inputs["model"])
    tokenizer = load_tokenizer(source, revision)
    examples = read_jsonl(inputs["examples"] / "examples.jsonl", Example) if "examples" in inputs else []
    problems = draw(read_split(inputs["problems"], config.split), config, examples)
    requests = build_requests(problems, tokenizer, config.samples_per_problem, config.seed)
    model = load_model(source, revision)
    sampler = make_sampler(model, tokenizer, config.sampling, config.compute_dtype, run.say)
    completions = sample_in_chunks(sampler, requests, config, run)
    completions = with_entropy(completions, model, tokenizer, config.sampling.temperature, config.compute_dtype)
    if not config.keep_log_probs:
        completions = [item.model_copy(update={"sampler_log_probs": None}) for item in completions]
    write_jsonl(output / "problems.jsonl", problems)
    write_jsonl(output / "completions.jsonl", completions)
    terms = asked_terms(config, problems, asked_template(config, inputs["problems"]), len(examples))
    (output / "terms.json").write_text(terms.model_dump_json(indent=1), encoding="utf-8")


def asked_template(config: SampleStage, prepared: Path) -> str | None:
    """Text of the template the problems are asked through; None where their folder does not tell."""
    written = prepared / "template.txt"
    if config.template is not None or not written.is_file():
        return config.template
    return written.read_text(encoding="utf-8")


def draw(problems: list[Problem], config: SampleStage, examples: Sequence[Example] = ()) -> list[Problem]:
    """The first `limit` problems, or `limit` drawn by `draw_seed` without replacement, under the stage's template.

    Raises ValueError if MATH-500 is asked for and no problem is marked as of it.
    """
    problems = of_subset(problems, config.subset)
    if config.draw_seed is not None:
        problems = random.Random(config.draw_seed).sample(problems, len(problems))
    chosen = problems[: config.limit]
    if config.template is None:
        return chosen
    template = config.template
    if examples:
        prompts = [render_few_shot(template, examples, one.question) for one in chosen]
    else:
        prompts = [render(template, one.question) for one in chosen]
    return [one.model_copy(update={"prompt": prompt}) for one, prompt in zip(chosen, prompts, strict=True)]


def sample_in_chunks(
    sampler: Sampler, requests: list[PromptRequest], config: SampleStage, run: RunContext
) -> list[Completion]:
    """Sample, resuming after the chunks a checkpoint holds."""
    folder = run.latest_checkpoint()
    done = read_jsonl(folder / "completions.jsonl", Completion) if folder else []
    size = config.sampling.batch_size * CHUNK_BATCHES
    started, tokens = time.monotonic(), 0
    while len(done) < len(requests):
        fresh = sampler.sample(requests[len(done) : len(done) + size], config.sampling)
        done = done + fresh
        tokens += sum(len(item.response_ids) for item in fresh)
        rate = tokens / (time.monotonic() - started)
        metrics = {"sample/completions": float(len(done)), "time/tokens_per_second": rate, **describe(fresh)}
        run.emit(len(done), metrics, total=len(requests))
        if run.checkpoint_due() and len(done) < len(requests):
            run.save_checkpoint(len(done), partial(_save, done))
    return done


def _save(completions: list[Completion], folder: Path) -> None:
    write_jsonl(folder / "completions.jsonl", completions)


def describe(completions: list[Completion]) -> dict[str, float]:
    """Mean entropy (where the sampler keeps it), length and truncation of a batch of completions."""
    count = len(completions)
    tokens = sum(len(item.response_ids) for item in completions)
    metrics = {
        "sample/mean_length": tokens / count,
        "sample/truncation_rate": sum(item.finish_reason == "length" for item in completions) / count,
    }
    known = [item.mean_entropy * len(item.response_ids) for item in completions if item.mean_entropy is not None]
    return metrics | ({"sample/entropy": sum(known) / max(tokens, 1)} if len(known) == count else {})
