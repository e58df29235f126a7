"""The page of an examination of data: one self-contained HTML file, made of doctor.json and the pictures beside it."""

import base64
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from headstart.errors import UserError

DOCTOR, PAGE = "doctor.json", "report.html"
SYMBOLS = {"must fix": "✗", "should look": "!", "fine": "✓"}
_PICTURES = {
    "Images": ("images.png", "A random sample, whole images in proportion; boxes are drawn where there are any."),
    "Views": ("views.png", "What the method would see: on the left an image, then the views of its first step."),
}


def report(folder: Path) -> Path:
    """Write ``report.html`` from ``doctor.json`` and the pictures in ``plots``, atomically, and return its path.

    Raises:
        UserError: the folder is not that of an examination.
    """
    try:
        found = json.loads((folder / DOCTOR).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"folder: no {DOCTOR} in '{folder}' can be read ({error})") from None
    page = render(found, _pictures(folder))
    temporary = folder / f".{PAGE}.part"
    temporary.write_text(page, encoding="utf-8")
    return temporary.replace(folder / PAGE)


def render(found: dict[str, Any], pictures: dict[str, tuple[str, str]]) -> str:
    """Return the page as HTML; every string from the data is escaped.

    Args:
        found: what is in doctor.json.
        pictures: by title the PNG in base 64, and its caption.
    """
    loader = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return pages.get_template("doctor.html.jinja").render(
        found=found,
        data=found["data"],
        headline=headline(found),
        facts=key_facts(found),
        symbols=SYMBOLS,
        classes={"must fix": "worse", "should look": "look", "fine": "better"},
        pictures=pictures,
        settings=json.dumps(found["config"], indent=1, ensure_ascii=False),
    )


def headline(found: dict[str, Any]) -> str:
    """Return the one sentence that a reader takes away."""
    names = [finding["name"] for finding in found["findings"] if finding["severity"] == "must fix"]
    look = sum(finding["severity"] == "should look" for finding in found["findings"])
    rest = f" {look} other thing{'' if look == 1 else 's'} to look at." if look else ""
    return (f"Fix this first: {', '.join(names)}." if names else "Nothing must be fixed.") + rest


def key_facts(found: dict[str, Any]) -> list[dict[str, str]]:
    """Return the few figures on top of the page, each with a title, a value with its unit, and a note."""
    data, speed, advice = found["data"], found["speed"], found["advice"]
    splits = ", ".join(f"{name} {count:,}" for name, count in data["splits"].items()) or "no splits"
    decoded = "all" if data["decoded"] == data["images"] else f"a sample of {data['decoded']:,}"
    facts = [
        {"title": "Images", "value": f"{data['images']:,}", "note": f"{splits}; {decoded} decoded"},
        {"title": "Classes", "value": f"{len(data['classes']):,}", "note": f"{data['labelled']:,} images with a label"},
    ]
    if speed is not None:
        memory = "" if speed["memory"] is None else f"; {speed['memory'] / 2**30:.1f} GiB of memory"
        note = f"{speed['steps']:,} steps of {found['config']['model']} on {speed['device']}{memory}"
        facts.append({"title": "Pretraining", "value": f"{speed['hours']:,.1f} hours", "note": note})
    if advice is not None:
        note = f"{advice['epochs']} epochs of batch {advice['batch_size']}"
        facts.append({"title": "Begin with", "value": advice["method"], "note": note})
    return facts


def _pictures(folder: Path) -> dict[str, tuple[str, str]]:
    files = {title: (folder / "plots" / name, caption) for title, (name, caption) in _PICTURES.items()}
    return {
        title: (base64.b64encode(path.read_bytes()).decode(), caption)
        for title, (path, caption) in files.items()
        if path.is_file()
    }
