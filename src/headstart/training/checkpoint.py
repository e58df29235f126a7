"""Checkpoints: everything needed to go on exactly. Nothing in a file is ever executed."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.errors import UserError
from headstart.runs import replace

FORMAT = "headstart checkpoint 1"


def save(path: Path, *, step: int, objective: Mapping[str, Tensor], **more: Any) -> None:
    """Write a checkpoint, whole or not at all. No generator state: randomness is a function of seed and step."""
    state = {"format": FORMAT, "step": step, "objective": dict(objective), **more}
    replace(path, lambda temporary: torch.save(state, temporary))


def read(path: Path, field: str) -> dict[str, Any]:
    """Return what `save` wrote, on the CPU.

    Raises:
        UserError: the file is missing, broken, or no Headstart checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{field}: no file {path}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{field}: {path} is no Headstart checkpoint ({reason})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{field}: {path} is no Headstart checkpoint (it has no '{FORMAT}' mark)")
    return state


def restore(state: dict[str, Any], *, objective: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put a checkpoint's state back and return its step."""
    objective.load_state_dict(state["objective"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
