"""The most memory that something took: on a GPU as PyTorch counts it, on a CPU as Linux counts it for the process."""

import re
from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PEAK = "5"  # what proc(5) wants to be written to forget the peak


class Peak:
    """The most memory in use beyond what was in use when this was made.

    Args:
        device: where the training is.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = torch.cuda.memory_allocated(device) if device.type == "cuda" else _read("VmRSS")

    def forget(self) -> None:
        """Begin to look for the peak anew."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif _RESET.exists():
            with suppress(OSError):  # where it is forbidden, the peak of the whole process counts
                _RESET.write_text(_PEAK)

    def bytes(self) -> int | None:
        """Return the peak since it was forgotten, None where the system does not tell."""
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _read("VmHWM")
        return None if peak is None or self.before is None else max(0, peak - self.before)


def _read(field: str) -> int | None:
    """Return a size from the status of this process, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE) if _STATUS.exists() else None
    return 1024 * int(found.group(1)) if found else None
