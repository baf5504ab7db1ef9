"""Seeds as functions of what they are for, so that a resumed or reordered run draws the same numbers."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any number of parts, e.g. `derive_seed(run_seed, "rollout", step, problem_id)`.

    sha256 over the parts with their types: stable across processes, hosts and Python versions, unlike `hash`.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
