"""Losses that make a student say what a teacher says; the caller detaches the teacher."""

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.losses.precision import exact


@exact
def negative_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """Negative cosine similarity, eq. 1 of SimSiam (arXiv:2011.10566).

    Symmetric in its arguments, unchanged by the scale of any row and by the order of the pairs, and between -1 and 1.
    The squared distance of eq. 2 of BYOL (arXiv:2006.07733) is 2 plus twice this.

    Args:
        predictions: ``[... d]``.
        targets: what they should point to, ``[... d]``, detached by the caller.

    Returns:
        The mean over all vectors, a scalar.
    """
    return -F.cosine_similarity(predictions, targets, dim=-1).mean()


@exact
def self_distillation(
    student: Tensor, teacher: Tensor, centre: Tensor, *, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Cross entropy between the teacher's and the student's views of an image, eq. 3 of DINO (arXiv:2104.14294).

    Not symmetric. Unchanged by the order of the images and by a constant added to all k outputs of a view. It is at
    least the entropy of the teacher, and log(k) where both are uniform.

    Args:
        student: outputs for all views, ``[v n k]``, those that the teacher sees first; v at least 2.
        teacher: outputs for the first t of these views, ``[t n k]``, detached by the caller.
        centre: subtracted from the teacher's outputs (alg. 1), ``[k]``.
        student_temperature: divides the student's outputs; above 0.
        teacher_temperature: divides the teacher's centred outputs; above 0 and lower, to sharpen them.

    Returns:
        The mean over images and over all pairs of a teacher's view and another view of the student, a scalar.
    """
    targets = ((teacher - centre) / teacher_temperature).softmax(dim=-1)
    log_shares = (student / student_temperature).log_softmax(dim=-1)
    pairs = -torch.einsum("tnk,vnk->tv", targets, log_shares) / student.shape[1]  # [t v]
    same_view = torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
    return pairs.masked_fill(same_view, 0).sum() / (pairs.numel() - len(teacher))


@exact
def feature_distillation(student: Tensor, teacher: Tensor, *, beta: float) -> Tensor:
    """Smooth L1 distance to whitened features of the teacher, eq. 2 and 3 of Wei et al. (arXiv:2205.14141).

    Not symmetric: only the teacher is whitened, by layer normalisation without affine parameters, so the loss is
    unchanged by the scale and shift of any of the teacher's vectors (up to an epsilon of 1e-5), not of the student's.

    Args:
        student: features, projected to the teacher's dimension, ``[... d]``.
        teacher: features, ``[... d]``, detached by the caller.
        beta: the difference at which the loss turns from quadratic to linear, 2 in the paper; above 0.

    Returns:
        The mean over all entries, a scalar.
    """
    return F.smooth_l1_loss(student, F.layer_norm(teacher, teacher.shape[-1:]), beta=beta)
