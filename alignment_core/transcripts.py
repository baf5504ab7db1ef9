"""What a batch has said so far, and which of its rows are done: the host's side of decoding.

Rows keep their number from the first token to the last, wherever a sampler holds them meanwhile.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alignment_core.decoding import StopRules
from alignment_core.records import Completion, FinishReason
from alignment_core.sampling import Finished, PromptRequest


class Transcripts:
    """Tokens, lengths and finish reasons of a batch."""

    def __init__(self, size: int, rules: StopRules, on_finished: Finished | None = None) -> None:
        """on_finished: called with (row, text) as a row ends."""
        limit = rules.config.max_tokens
        self._rules, self._on_finished = rules, on_finished
        self._texts: list[str | None] = [None] * size
        self._tokens = np.zeros((size, limit), dtype=np.int64)
        self._lengths = np.full(size, limit)
        self._reasons: list[FinishReason] = ["length"] * size
        self.alive: NDArray[np.bool_] = np.ones(size, dtype=bool)
        """(B,) bool: rows no stop string or EOS has ended yet."""

    def record(self, rows: NDArray[np.int64], ids: NDArray[np.int64], position: int) -> None:
        """Store the tokens that `rows` drew at a 0-based position, and note which rows they end.

        Positions come in order. What a finished row draws is stored and left out of its completion.
        """
        self._tokens[rows, position] = ids
        for index in np.flatnonzero(self._rules.is_eos(ids)).tolist():
            self._finish(rows[index], position, "eos")
        for index in self._rules.stop_candidates(ids, position):
            row = rows[index]
            tail = self._tokens[row, max(0, position + 1 - self._rules.tail_tokens) : position + 1]
            if self.alive[row] and self._rules.completes_stop(tail.tolist()):
                self._finish(row, position, "stop")

    def completions(self, requests: Sequence[PromptRequest], log_probs: Tensor, entropies: Tensor) -> list[Completion]:
        """One completion per row; `log_probs` and `entropies` are (B, max_tokens), read up to each row's length.

        Raises FloatingPointError where the model's probabilities were not numbers.
        """
        for row in np.flatnonzero(self.alive).tolist():
            self._hand_over(row)
        all_log_probs, all_entropies = log_probs.cpu().numpy(), entropies.cpu().numpy()
        completions = []
        for row, request in enumerate(requests):
            length = int(self._lengths[row])
            if not np.isfinite(all_log_probs[row, :length]).all():
                raise FloatingPointError(
                    f"the model gives no finite probabilities for problem {request.problem_id}: its weights or its "
                    "compute type are broken; take an earlier checkpoint, or compute in float32"
                )
            ids = self._tokens[row, :length].tolist()
            completions.append(
                Completion(
                    problem_id=request.problem_id,
                    sample_index=request.sample_index,
                    prompt_ids=request.prompt_ids,
                    response_ids=ids,
                    text=self._text(row),
                    finish_reason=self._reasons[row],
                    sampler_log_probs=all_log_probs[row, :length].tolist(),
                    mean_entropy=float(all_entropies[row, :length].mean()),
                )
            )
        return completions

    def _finish(self, row: int, position: int, reason: FinishReason) -> None:
        if self.alive[row]:
            self.alive[row], self._lengths[row], self._reasons[row] = False, position + 1, reason
            self._hand_over(row)

    def _hand_over(self, row: int) -> None:
        if self._on_finished is not None:
            self._on_finished(row, self._text(row))

    def _text(self, row: int) -> str:
        """The row's response, decoded once."""
        text = self._texts[row]
        if text is None:
            text = self._texts[row] = self._rules.text(self._tokens[row, : self._lengths[row]].tolist())
        return text
