"""Whether the model hub can be reached, asked once and quickly, so that nothing waits minutes for one that cannot.

The hub's own client asks six times for each file, with growing pauses: minutes behind a firewall that drops packets.
"""

import http.client
import ssl
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants, is_offline_mode, try_to_load_from_cache

PROBE_SECONDS = 10.0


@cache
def hub_outage() -> str:
    """Why the hub cannot be reached, in words; empty if it answers anything at all."""
    if is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
            return ""
    except urllib.error.HTTPError:
        return ""
    except urllib.error.URLError as error:
        # The hub's client may know a certificate that this probe does not: let it try.
        return "" if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__


def loading_options(source: str, revision: str | None) -> dict[str, Any]:
    """Arguments of `from_pretrained` beside `source`: the local cache alone where the hub cannot be reached.

    Raises ValueError if the hub is needed and cannot be reached.
    """
    outage = "" if Path(source).is_dir() else hub_outage()
    if not outage:
        return {"revision": revision}
    if isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str):
        return {"revision": revision, "local_files_only": True}
    raise ValueError(
        f"the model {source!r} is not in the local cache, and the hub at {constants.ENDPOINT} cannot be reached "
        f"({outage}): set model.source (or --model, or distillation.teacher) to a local folder in Hugging Face layout"
    )


def require_hub(source: str) -> None:
    """Raise ValueError if a data set would have to come from a hub that cannot be reached.

    HF_HUB_OFFLINE passes: `datasets` then looks into its cache, and nowhere else.
    """
    outage = "" if is_offline_mode() else hub_outage()
    if outage:
        raise ValueError(
            f"the data set {source!r} is no local file, and the hub at {constants.ENDPOINT} cannot be reached "
            f"({outage}): set data.train, data.test (and data.traces) to local .jsonl files, or HF_HUB_OFFLINE=1 "
            "if an earlier run has downloaded it"
        )
