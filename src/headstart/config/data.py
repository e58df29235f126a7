"""What the user may set wherever data are opened."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from headstart.settings import Auto, Location, Positive, Settings, Share, listed

Range = tuple[tuple[float, float], ...]


def _merged(value: object) -> object:
    """Read `duck,vehicle=car,truck` as {duck: [duck], vehicle: [car, truck]}: names after = make up one class."""
    if value is None or isinstance(value, Mapping):
        return value if value is None else {str(name): listed(parts) for name, parts in value.items()}
    merged: dict[str, list[str]] = {}
    current = ""
    parts = listed(value)
    assert isinstance(parts, list)
    for part in parts:
        name, equals, first = (text.strip() for text in str(part).partition("="))
        if equals:
            current = name
        names = merged.setdefault(current or name, [])
        names.append(first if equals else name)
    return merged


def _check_merged(value: Mapping[str, tuple[str, ...]] | None) -> Mapping[str, tuple[str, ...]] | None:
    names = [name for parts in (value or {}).values() for name in parts]
    if value == {} or not all(names) or not all(value or ()):
        raise ValueError("a class has no name (allowed: NAME,NAME or NEW=NAME,NAME)")
    twice = [name for position, name in enumerate(names) if name in names[:position]]
    if twice:
        raise ValueError(f"'{twice[0]}' is given twice")
    return value


def _share(value: object) -> object:
    """Read `1%` as 0.01."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            return value
    return value


def _range(value: object) -> object:
    """Read `0,4095` as one range for all channels, and `0,4095,0,255` as one for each of two."""
    if value == "none":
        return None
    if isinstance(value, str) and value != "auto":
        value = value.split(",")
    if isinstance(value, list | tuple) and value and not isinstance(value[0], list | tuple):
        return [value[place : place + 2] for place in range(0, len(value), 2)]
    return value


def _check_range(value: Any) -> Any:
    if value not in ("auto", None) and not all(low < high for low, high in value):
        raise ValueError("each range needs a lower and a higher value (allowed: auto, or LOW,HIGH of each channel)")
    return value


Classes = Annotated[dict[str, tuple[str, ...]] | None, BeforeValidator(_merged), AfterValidator(_check_merged)]
SmallShare = Annotated[Share, BeforeValidator(_share)]


class Data(Settings):
    """What every verb that opens data shares."""

    data: Location
    """DATA: a folder, a file of annotations or a table, hf:NAME, wds:SHARDS, or the name of a known data set."""
    limit: Annotated[int, Field(ge=2)] | None = None
    """Use at most this many images, of every class and split its share (none: all)."""
    classes: Classes = None
    """Classes to keep, as in duck,fish; as in vehicle=car,truck they become one (none: all as they are)."""
    channels: Positive | Auto = "auto"
    """Channels of the decoded images (auto: 3 for grey and colour images, else as many as there are)."""
    pixel_range: Annotated[Range | Auto | None, BeforeValidator(_range), AfterValidator(_check_range)] = "auto"
    """Values of 16-bit and float pixels that become 0 and 1, as LOW,HIGH of all or each channel (auto: percentiles)."""
    max_bad: SmallShare = 0.01
    """Share of broken files, such as 1%, up to which they are left out and listed; above it the verb stops."""
