"""The ways to pretrain, one paper per file. A new method is one file and one line here."""

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from headstart.contracts import Backbone, Method
from headstart.errors import UserError, unknown
from headstart.methods.barlow_twins import BarlowTwins
from headstart.methods.byol import BYOL
from headstart.methods.densecl import DenseCL
from headstart.methods.dino import DINO
from headstart.methods.distill import Distill
from headstart.methods.mae import MAE
from headstart.methods.moco import MoCo
from headstart.methods.nnclr import NNCLR
from headstart.methods.rotation import Rotation
from headstart.methods.simclr import SimCLR
from headstart.methods.simsiam import SimSiam
from headstart.methods.supcon import SupCon
from headstart.methods.supcon_anchor import SupConAnchor
from headstart.methods.supcon_pairs import SupConPairs
from headstart.methods.swav import SwAV
from headstart.methods.vicreg import VICReg
from headstart.methods.visreg import VISReg

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "moco": MoCo,
    "byol": BYOL,
    "simsiam": SimSiam,
    "barlow-twins": BarlowTwins,
    "vicreg": VICReg,
    "swav": SwAV,
    "dino": DINO,
    "nnclr": NNCLR,
    "densecl": DenseCL,
    "visreg": VISReg,
    "mae": MAE,
    "distill": Distill,
    "rotation": Rotation,
    "supcon": SupCon,
    "supcon-pairs": SupConPairs,
    "supcon-anchor": SupConAnchor,
}
# a class may be called 3, which YAML reads as a number
_STRICT = ConfigDict(allow_inf_nan=False, coerce_numbers_to_str=True)


def find(name: str) -> type[Method]:
    """Return the method of that name.

    Raises:
        UserError: there is none; the nearest right name is offered.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def hyper_parameters(method: type[Method]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only arguments of a method's constructor: they are the schema of ``method_args``."""
    parameters = inspect.signature(method).parameters.values()
    return {parameter.name: parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def resolve(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return all hyper-parameters of a method, those given checked against its signature.

    Raises:
        UserError: an argument that the method has not, or of another type.
    """
    schema = hyper_parameters(find(name))
    for argument in arguments:
        if argument not in schema:
            raise unknown("method_args", argument, schema)
    # as elsewhere, none is no value where help shows it so
    given = {
        key: None if value == "none" and schema[key].default is None else value for key, value in arguments.items()
    }
    fields: dict[str, Any] = {key: (parameter.annotation, parameter.default) for key, parameter in schema.items()}
    try:
        model = create_model(name, __config__=_STRICT, **fields)(**given)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ").lower()
        raise UserError(f"method_args.{first['loc'][0]}: {reason}, not {first['input']!r}") from None
    return dict(model.model_dump())


def checked(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are given, and no others, checked as by `resolve`."""
    every = resolve(name, arguments)
    return {argument: every[argument] for argument in arguments}


def build(name: str, backbone: Backbone, arguments: Mapping[str, Any]) -> Method:
    """Return a method around a backbone, given hyper-parameters in which nothing is ``auto`` any more."""
    return find(name)(backbone, **resolve(name, arguments))
