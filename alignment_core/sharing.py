"""How a shared store is used, as the environment says; none of it is in any key.

| variable | meaning | default |
|---|---|---|
| ALIGNFLOW_STORE | the shared store: a folder all hosts see, or a URL fsspec knows, e.g. s3://bucket/folder | none |
| ALIGNFLOW_CACHE_GB | most that artifacts take under data/store, of those that the shared store has too | no bound |
| ALIGNFLOW_LEASE_SECONDS | silence after which another host takes over a stage | 90 |
| ALIGNFLOW_UPLOAD_SECONDS | at least so long between two uploads of a running stage's checkpoints | 180 |
| ALIGNFLOW_STORE_PATIENCE | longest wait for a store that cannot be reached, before an error | 600 |
| ALIGNFLOW_STOP_SECONDS | longest wait for the upload of the last checkpoint when a signal stops a stage | 20 |
"""

from typing import TYPE_CHECKING, TypeAlias

from alignment_core.operation import number_setting

if TYPE_CHECKING:
    from alignment_core.shared_store import SharedStore

Shared: TypeAlias = "SharedStore | None"
"""What a store may have behind it; named here, for the two modules know of each other."""

STORE = "ALIGNFLOW_STORE"
CACHE_GB = "ALIGNFLOW_CACHE_GB"
LEASE_SECONDS = "ALIGNFLOW_LEASE_SECONDS"
UPLOAD_SECONDS = "ALIGNFLOW_UPLOAD_SECONDS"
STORE_PATIENCE = "ALIGNFLOW_STORE_PATIENCE"
STOP_SECONDS = "ALIGNFLOW_STOP_SECONDS"

DEFAULTS = {
    CACHE_GB: float("inf"),
    LEASE_SECONDS: 90.0,
    UPLOAD_SECONDS: 180.0,
    STORE_PATIENCE: 600.0,
    STOP_SECONDS: 20.0,
}


def setting(name: str) -> float:
    """The number that one of these variables sets, else its default; ValueError if it is no number >= 0."""
    return number_setting(name, DEFAULTS[name], 60, "number >= 0")


def lease_seconds() -> float:
    """The lease; ValueError below one second, which no beat over a network keeps."""
    lease = setting(LEASE_SECONDS)
    if lease < 1:
        raise ValueError(f"{LEASE_SECONDS}={lease:g} is too short for a beat to be seen: set 1 or more, e.g. 90")
    return lease
