"""The step that deployments begin with: a worker's process goes to its own host's checkout, wherever that lies."""

import os
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]


def enter() -> dict[str, str]:
    """Make the checkout that this code is of the working directory; Prefect then loads the flow from there."""
    os.chdir(CHECKOUT)
    return {"directory": str(CHECKOUT)}
