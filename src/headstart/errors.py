"""What a user can do wrong, said in one line."""

from collections.abc import Iterable
from difflib import get_close_matches

_SHOWN = 30  # allowed values in one line


class UserError(ValueError):
    """A mistake in what the user gave: one line that names the field and the allowed values.

    The commands print it without a traceback and exit with status 2.
    """


def unknown(field: str, value: object, allowed: Iterable[object]) -> UserError:
    """Return the error for a name that is not among the allowed ones, with the nearest right name.

    >>> print(unknown("method", "simclrr", ["byol", "simclr"]))
    method: unknown 'simclrr', did you mean 'simclr'? (allowed: byol, simclr)
    """
    names = {str(name).lower(): str(name) for name in allowed}
    near = get_close_matches(str(value).lower(), names, n=1, cutoff=0.5)
    hint = f", did you mean '{names[near[0]]}'?" if near else ""
    shown = ", ".join([*names.values()][:_SHOWN]) + (f", … {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return UserError(f"{field}: unknown '{value}'{hint} (allowed: {shown})")
