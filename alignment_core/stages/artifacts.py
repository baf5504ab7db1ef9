"""How stages read each other's folders: models, problems, training examples."""

import json
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment_core.batching import TokenSequence
from alignment_core.models import save_model
from alignment_core.processes import process_rank
from alignment_core.records import Problem, TokenExample, read_jsonl
from alignment_core.sampling import encode_trace


def model_location(artifact: Path) -> tuple[str, str | None]:
    """Where the weights of a model artifact lie: (folder or hub id, revision)."""
    pointer = artifact / "record" / "location.json"
    if pointer.is_file():
        location = json.loads(pointer.read_text(encoding="utf-8"))
        return location["source"], location["revision"]
    return str(artifact / "model"), None


def publish_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write model/, a Hugging Face folder; of several processes that train together, the first one does."""
    if process_rank() == 0:
        save_model(model, tokenizer, output / "model")


def read_examples(folder: Path, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...]) -> list[TokenSequence]:
    """Training pairs of a prepare, filter or select artifact.

    Traces are tokenized apart from their prompts; one that no `stop` string ends gets EOS, or the model would never
    learn to end it. Selected samples keep the ids they were sampled with.
    """
    selected = folder / "examples.jsonl"
    if selected.is_file():
        return [TokenSequence(item.prompt_ids, item.response_ids) for item in read_jsonl(selected, TokenExample)]
    traces = (problem for problem in read_jsonl(folder / "traces.jsonl", Problem) if problem.trace is not None)
    return [
        encode_trace(tokenizer, one.prompt, one.trace or "", append_eos=not (one.trace or "").rstrip().endswith(stop))
        for one in traces
    ]
