"""Where data are kept that are not the user's own."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of known data sets and of copies: $HEADSTART_DATA, by default ~/.cache/headstart/data."""
    return Path(os.environ.get("HEADSTART_DATA") or "~/.cache/headstart/data").expanduser()
