"""Checks that several methods make before anything is loaded."""

from headstart.contracts import Planned
from headstart.errors import UserError
from headstart.settings import Auto


def queue_size(asked: int | Auto, plan: Planned, most: int, *, part: int = 1) -> int:
    """Return the length of a queue: as asked, else ``most`` but at most a ``part``-th of the images.

    Of a queue as long as the data, half the images would meet their own embedding of the epoch before.

    Raises:
        UserError: it would be longer than there are images, so that images met older copies of themselves.
    """
    if asked == "auto":
        return min(most, max(1, plan.images // part))
    if asked > plan.images:
        raise UserError(
            f"method_args.queue: {asked} is larger than the {plan.images} images (allowed: 1 to {plan.images}, auto)"
        )
    return asked


def check_splits(splits: int, plan: Planned) -> None:
    """Raise a UserError when the pieces of a batch are too small to be normalised."""
    own = plan.batch_size // plan.devices
    if own < 2 * splits:
        raise UserError(
            f"batch_size: {own} images in {splits} splits are too few to be normalised"
            f" (allowed: {2 * splits} and more, or method_args.splits up to {own // 2})"
        )
