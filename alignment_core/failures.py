"""Whose a failure is: told by its class, the same in this process, in another one and on another host.

a member's own   `OWN`: settings, data or sizes that may suit other members; the rest of a study goes on without it.
                 A process that was killed counts here: most often its stage was too large for the host
the host's       any other OSError: what a machine, its code, a store or a server lacks; no member would fare better
a bug            all else: nobody foresaw it, so that its traceback is what counts

The first two carry a message with a remedy, and cross a boundary as a `records.Failure`: a name out of a closed list,
and a text. A bug crosses as text alone, and arrives as a RuntimeError.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class MemberError(RuntimeError):
    """A stage came to an end that others need not meet, as turned out while it ran; the message has the remedy."""


class HostError(OSError):
    """What a host, its code or a server lacks for a stage; the message has the remedy."""


OWN = (ValueError, FloatingPointError, MemoryError, MemberError)
"""What may be a member's own fault: settings that diverge, no right sample to learn from, a lack of memory."""
TOLD = (*OWN, OSError)
"""What carries a message for the user."""
KINDS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (*OWN, HostError)}
"""Classes that cross a boundary, by name; every OSError does so as a HostError."""


ACCELERATOR_FAULTS = ("CUDA error", "NCCL", "CUBLAS", "cuDNN")
"""What a RuntimeError of torch says where a card, a link or a driver failed: no bug, and other cards may be well."""


@contextmanager
def torch_told() -> Iterator[None]:
    """MemoryError where torch has no memory left and nobody gave other advice, MemberError where a card fails."""
    try:
        yield
    except RuntimeError as error:
        if "torch" not in sys.modules:
            raise
        from alignment_core.hardware import memory_advice  # which imports torch

        with memory_advice("take a smaller model, or fewer tokens at a time"):
            if any(word in str(error) for word in ACCELERATOR_FAULTS):
                raise MemberError(
                    f"the accelerator failed ({error}). Run the same command again, which goes on from the last "
                    "checkpoint; if it fails again, on another card"
                ) from error
            raise
