"""What crosses a boundary: small frozen records, JSON in and out.

Every record knows how to become one line of JSON. Nothing here imports torch, so that the parent of a
study, the command line and the report read records without paying for it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from alignment_core.failures import KINDS, HostError
from alignment_core.redaction import redact
from alignment_core.verdicts import GradeStatus

FinishReason = Literal["stop", "eos", "length"]
"""Why a completion ended: a stop string, the end-of-text token, or the token limit (truncated)."""


class Record(BaseModel):
    """A frozen value that travels between floors, hosts and files."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Failure(Record):
    """An error of `failures.TOLD` on its way to whoever asked for the stage."""

    kind: Literal["ValueError", "FloatingPointError", "MemoryError", "MemberError", "HostError"]
    text: str
    """Its message, without secrets."""

    @classmethod
    def of(cls, error: Exception) -> Self:
        """What is told of an error of `failures.TOLD`."""
        kinds = (name for name, kind in KINDS.items() if isinstance(error, kind))
        return cls.model_validate({"kind": next(kinds, HostError.__name__), "text": redact(str(error))})

    @classmethod
    def read(cls, line: str) -> Self | None:
        """Of what `line` wrote; None if that is another text."""
        kind, separator, text = line.partition(": ")
        return cls.model_validate({"kind": kind, "text": text}) if separator and kind in KINDS else None

    def line(self) -> str:
        """For people too: the kind, and the message."""
        return f"{self.kind}: {self.text}"

    def error(self, where: str = "") -> Exception:
        """The error again; where: put before its message."""
        return KINDS[self.kind](where + self.text)


class Problem(Record):
    """One question with the prompt it is asked through, its gold answer and, when known, a trace."""

    id: str
    """Unique in its data set; stable across re-splits."""
    question: str
    prompt: str
    """The rendered template; what the model is conditioned on."""
    ground_truth: str
    """The short gold answer the grader compares with."""
    trace: str | None = None
    """A response to imitate: the text that follows `prompt`, up to and including `</answer>`."""
    meta: dict[str, str | int | float | bool | None] = {}
    """Level, subject, number of steps … whatever the source tells."""


class Example(Record):
    """A question with the response a few-shot prompt shows to it."""

    question: str
    response: str


class Completion(Record):
    """One sampled response, by token ids: what was sampled is what is trained on."""

    problem_id: str
    sample_index: int
    """0 … G-1 within the problem."""
    prompt_ids: list[int]
    response_ids: list[int]
    """Includes the token that completed the stop string, or the EOS token, when there is one."""
    text: str
    """Decoded response, stop string kept, EOS left out."""
    finish_reason: FinishReason
    sampler_log_probs: list[float] | None = None
    """Log-probability (nats) the sampler gave each response token; dropped where nothing needs it."""
    mean_entropy: float | None = None
    """Mean next-token entropy (nats) over the response tokens, from the sampler's distribution."""


class GradedResponse(Record):
    """The grader's verdict on one response."""

    format_reward: float
    answer_reward: float
    reward: float
    extracted: str | None = None
    """The answer text the verdict was about; None if there was none to extract."""
    method: str = "none"
    """Which test decided: `string`, `symbolic`, `math_verify`, `number`, `none` …"""
    status: GradeStatus = "ok"
    suspicious: bool = False
    """The response looks like it plays the gate (several answer blocks, several options …)."""
    fast_reward: float | None = None
    """What the fast mode says, where the thorough mode was asked: their difference is a metric."""
    milliseconds: float | None = None
    """Time to the verdict; left out of stored grades, which must not differ from run to run."""


class ScoredCompletion(Record):
    """A completion with its verdict."""

    completion: Completion
    grade: GradedResponse


class TokenExample(Record):
    """A sampled response kept for training, by ids: text is never tokenized again. One line of an `examples.jsonl`."""

    problem_id: str
    prompt_ids: list[int]
    response_ids: list[int]


class PreferencePair(Record):
    """Two responses to one prompt, the better one first; one line of a `pairs.jsonl`."""

    prompt: str
    """The rendered template, as the model is asked."""
    chosen_response: str
    rejected_response: str
    problem_id: str | None = None
    prompt_ids: list[int] | None = None
    """Token ids of sampled responses and their prompt, all three or none: what was sampled is what is trained on."""
    chosen_ids: list[int] | None = None
    rejected_ids: list[int] | None = None

    @model_validator(mode="after")
    def _ids_come_together(self) -> Self:
        given = [ids is not None for ids in (self.prompt_ids, self.chosen_ids, self.rejected_ids)]
        if any(given) and not all(given):
            raise ValueError("prompt_ids, chosen_ids and rejected_ids come together: give all three, or none")
        return self


class ArtifactRef(Record):
    """A finished artifact in the store: enough to find it and to be sure it is the one meant."""

    stage: str
    key: str
    digest: str
    """sha256 over the artifact's content files; the part of it that enters later keys."""


class AtK(Record):
    """A mean over problems of what k samples each give."""

    k: int
    value: float
    low: float
    """Lower end of the 95 % Wilson interval over problems."""
    high: float


class EvalReport(Record):
    """The numbers of one evaluation, over n completions of n problems (one each) unless said."""

    n: int
    n_correct: int
    n_formatted: int
    accuracy: float
    accuracy_low: float
    """Lower end of the 95 % Wilson interval."""
    accuracy_high: float
    format_rate: float
    accuracy_formatted: float | None
    """Correct among formatted responses; None if none was formatted."""
    truncation_rate: float
    categories: dict[str, int]
    """Counts by (format, answer) reward: "1,1", "1,0", "0,0" (and "0,1" where a reward allows it)."""
    failures: dict[str, int]
    """Counts of the taxonomy of failure reasons."""
    mean_length: float
    """Response tokens."""
    mean_length_correct: float | None
    mean_length_incorrect: float | None
    mean_entropy: float | None
    """Nats per response token."""
    n_suspicious: int
    n_timeouts: int
    n_errors: int = 0
    """Answers on which a grading child broke; they score 0, as timeouts do."""
    n_thorough_only: int | None = None
    """Right in the thorough mode and wrong in the fast one; None where only the fast mode was asked."""
    n_fast_only: int | None = None
    """The other way round."""
    response_tokens: int
    samples_per_problem: int = 1
    pass_at_k: list[AtK] = []
    """Chance that k samples of a problem hold a right one, unbiased; empty where problems were sampled once."""
    maj_at_k: list[AtK] = []
    """Chance that the answer most of k samples give is right (`alignment_core.voting`); empty likewise."""
    n_unmerged: int = 0
    """Answers that voted for themselves alone, since comparing them with others hit a limit."""


R = TypeVar("R", bound=Record)


def write_jsonl(path: Path, records: Iterable[BaseModel]) -> int:
    """Write one record a line; return how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(record.model_dump_json(exclude_none=True) + "\n")
            count += 1
    return count


def read_jsonl(path: Path, kind: type[R]) -> list[R]:
    """Read a file of `kind` records; an invalid line raises ValueError naming file and line."""
    return list(iterate_jsonl(path, kind))


def iterate_jsonl(path: Path, kind: type[R]) -> Iterator[R]:
    """Yield the `kind` records of a file one by one (same errors as `read_jsonl`)."""
    with path.open("r", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield kind.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"]) or "the line"
                raise ValueError(f"{path}, line {number}: {where}: {first['msg']}") from error
