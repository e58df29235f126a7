"""Optimisers with the exclusions of the papers, and the learning rate of every step."""

import math

import torch
from timm.optim.lars import Lars

from headstart.contracts import Objective


def build_optimizer(
    objective: Objective,
    name: str,
    *,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    peak: float = 1.0,
) -> torch.optim.Optimizer:
    """Return SGD with momentum 0.9, LARS with momentum 0.9 and trust coefficient 0.001, AdamW, or Adam.

    Biases and the weights of normalisations (tensors of one dimension) are neither decayed nor scaled by LARS
    (SimCLR sec. 2.1 and BYOL sec. 3.2). The learning rate is set before every step by the loop, but
    for the parts that the objective calls constant, which stay at the peak.
    """
    trained = [(key, value) for key, value in objective.named_parameters() if value.requires_grad]
    # timm leaves out undecayed groups by itself, and would leave out all when the weight decay is 0
    adapt = {"always_adapt": True} if name == "lars" else {}
    groups = []
    for constant in (False, True):
        own = [value for key, value in trained if (key.split(".")[0] in objective.constant) == constant]
        weights, others = [p for p in own if p.ndim > 1], [p for p in own if p.ndim <= 1]
        groups.append({"params": weights, "weight_decay": weight_decay, "constant": constant, **adapt})
        groups.append({"params": others, "weight_decay": 0.0, "constant": constant})
    groups = [group for group in groups if group["params"]]
    if name == "lars":
        return Lars(groups, lr=peak, momentum=0.9, trust_coeff=0.001)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=peak, betas=betas, fused=True)
    if name == "adam":
        return torch.optim.Adam(groups, lr=peak, betas=betas, fused=True)
    assert name == "sgd", name
    return torch.optim.SGD(groups, lr=peak, momentum=0.9, fused=True)


def scale_learning_rate(base: float, batch_size: int, rule: str) -> float:
    """Return the peak learning rate for a batch, given the one for a batch of 256.

    >>> scale_learning_rate(0.1, 1024, "linear"), scale_learning_rate(0.1, 1024, "sqrt")
    (0.4, 0.2)
    """
    share = batch_size / 256
    return base * {"linear": share, "sqrt": math.sqrt(share), "none": 1.0}[rule]


def learning_rate(step: int, *, steps: int, warmup: float, peak: float) -> float:
    """Return the learning rate of a step (0 is the first): a linear rise to the peak, then half a cosine to 0.

    >>> [round(learning_rate(step, steps=6, warmup=1 / 3, peak=1.0), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    rise = round(warmup * steps)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give the parameter groups the learning rate of a step, but for the constant ones."""
    for group in optimizer.param_groups:
        if not group["constant"]:
            group["lr"] = value
