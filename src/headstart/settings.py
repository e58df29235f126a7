"""How settings behave: frozen, checked, strict, written to YAML and read back, with an identity."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from headstart.errors import UserError, unknown


def _no_truth(value: object) -> object:
    # YAML reads yes and on as true, which Python counts as 1
    if isinstance(value, bool):
        raise ValueError("a number is needed, not yes or no")
    return value


Auto = Literal["auto"]
Positive = Annotated[int, BeforeValidator(_no_truth), Field(ge=1)]
Pixels = Annotated[int, BeforeValidator(_no_truth), Field(ge=1, le=8192)]
PositiveFloat = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
NotNegativeInt = Annotated[int, BeforeValidator(_no_truth), Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Stem = Literal["auto", "small", "standard"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Transfer = Literal["probe", "head", "finetune"]


def listed(value: object) -> object:
    """Read `1,5,all` as a list, so that the command line and YAML may both write budgets in one line."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    if isinstance(value, list | tuple):
        return [part for item in value for part in (item.split(",") if isinstance(item, str) else [item])]
    return [value]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = [value for position, value in enumerate(values) if value in values[:position]]
    if twice:
        raise ValueError(f"{twice[0]} is given twice")
    return values


def _seeds(value: object) -> object:
    """Read `0,1` as seeds, but `5` as their number."""
    return listed(value) if isinstance(value, str) and "," in value else value


def _text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _absolute(value: str) -> str:
    """Return a path that is there such that it means the same from any working folder, and any other text as it is."""
    return str(Path(value).resolve()) if Path(value).exists() else value


def _written(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


Location = Annotated[str, BeforeValidator(_written)]
Origin = Annotated[str, BeforeValidator(_written), AfterValidator(_absolute)]
Seeds = Annotated[Positive | tuple[int, ...], BeforeValidator(_seeds)]
Budget = Annotated[str, BeforeValidator(_text)]
Penalties = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(listed), Field(min_length=1)]
Budgets = Annotated[tuple[Budget, ...], BeforeValidator(listed), AfterValidator(_distinct), Field(min_length=1)]


class Settings(BaseModel):
    """Frozen settings that know their fields: an unknown key, a wrong type or a value out of range is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _none(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Read none as no value where that is the default, because help shows it so."""
        optional = {
            name for name, field in cls.model_fields.items() if not field.is_required() and field.default is None
        }
        return {name: None if name in optional and value == "none" else value for name, value in values.items()}

    @classmethod
    def create(cls, **values: Any) -> Self:
        """Return checked settings.

        Raises:
            UserError: one line that names the field and what is allowed.
        """
        for name in values:
            if name not in cls.model_fields:
                raise unknown("option", name, cls.model_fields)
        try:
            return cls(**values)
        except ValidationError as error:
            raise UserError(_one_line(error)) from None

    @classmethod
    def read(cls, path: Path, **given: Any) -> Self:
        """Return the settings in a YAML file, in which ``given`` ones win; nested settings win one by one."""
        stored = read_yaml(path)
        nested = {
            name: {**stored[name], **value}
            for name, value in given.items()
            if isinstance(value, Mapping) and isinstance(stored.get(name), Mapping)
        }
        try:
            return cls.create(**{**stored, **given, **nested})
        except UserError as error:
            raise UserError(f"{error} (in {path})") from None

    def updated(self, **values: Any) -> Self:
        """Return a checked copy with other values."""
        return self.create(**{**self.model_dump(), **values})

    def to_yaml(self) -> str:
        """Return the settings as YAML that `read` reads back to equal settings."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


UNDECIDING = frozenset({"data", "workers", "checkpoint_every", "name"})
"""Fields that do not decide a result; the data do, and enter an identity by their fingerprint instead."""


def identity(settings: Mapping[str, Any], *facts: str) -> str:
    """Return 16 hex digits that are equal for equal settings and facts, whatever the order of the keys.

    >>> identity({"epochs": 2, "seed": 0}) == identity({"seed": 0, "epochs": 2, "workers": 4})
    True
    """
    deciding = {key: value for key, value in settings.items() if key not in UNDECIDING}
    text = json.dumps([deciding, *facts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, of which YAML's own would drop the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping, or raise an error that names the key and its line."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.YAMLError(f"'{key}' is given twice (line {node.value[position][0].start_mark.line + 1})")
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        UserError: there is no such file, or it holds no mapping.
    """
    try:
        values = yaml.load(path.read_text(), _StrictLoader)
    except FileNotFoundError:
        raise UserError(f"config: no file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"config: {path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"config: {path} must hold `name: value` lines")
    return {str(key): value for key, value in values.items()}


def signature(settings: type[Settings], *, before: tuple[inspect.Parameter, ...] = ()) -> inspect.Signature:
    """Return the signature of a verb: its own parameters, then every setting by keyword with its default."""
    fields = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.is_required() else field.default,
            annotation=field.annotation,
        )
        for name, field in settings.model_fields.items()
        if name not in {parameter.name for parameter in before}
    ]
    return inspect.Signature([*before, *fields])


_BRANCHES = ("constrained", "literal", "int", "float", "function", "tuple", "dict[", "str")


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    # pydantic appends the branch of a union to the location; only the names that the user wrote help
    field = ".".join(str(part) for part in first["loc"] if not str(part).startswith(_BRANCHES))
    allowed = sorted({str(e["ctx"]["expected"]) for e in error.errors() if "expected" in e.get("ctx", {})})
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{field}: is needed"
    if first["type"] == "value_error" and (not field or message.startswith(f"{field}:")):
        return message
    others = f" (or {', '.join(allowed)})" if allowed and "expected" not in first.get("ctx", {}) else ""
    shown = "" if first["type"] == "value_error" else f", not {first['input']!r}"
    return f"{field}: {message[0].lower()}{message[1:]}{others}{shown}"
