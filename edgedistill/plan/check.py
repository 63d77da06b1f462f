"""Everything about a build that can be found wrong before anything slow: names, parameters, what a format can hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from edgedistill import catalog
from edgedistill.errors import SpecError, did_you_mean
from edgedistill.plan.nearest import KINDS
from edgedistill.plan.storable import check_stored, misfit, written
from edgedistill.specs import DistilSpec, LossTerm, Profile, Target
from edgedistill.students import StoredTensor
from edgedistill.students._allocation import narrowable


def check(target: Target, profile: Profile, fleet: Sequence[Target] = ()) -> ModuleType:
    """Check every name that the targets and the profile use; returns the student family.

    `fleet` are further devices of the same build: the scheme that a refusal advises is one that all formats store.

    Raises:
        SpecError: for an unknown family, format, task or loss, or a scheme that a format cannot store exactly.
    """
    where = f"profile {profile.name!r}"
    _known("tasks", profile.task, f"{where}: task")
    _known("students", profile.student.family, f"{where}: student.family")
    family = catalog.load_plugin("students", profile.student.family)
    kinds = getattr(family, "ACTIVATIONS", KINDS)
    formats = [(one, name) for one in (target, *fleet) for name in one.formats]
    for one, name in formats:
        _known("exporters", name, f"target {one.name!r}: formats")
        if name not in family.FORMATS:
            raise SpecError(
                f"target {one.name!r} asks for format {name!r}, which cannot hold the student family"
                f" {profile.student.family!r} of {where}. It can be held by: {', '.join(family.FORMATS)}."
            )
        _constant("exporters", name, "HOLDS")
    names = list(dict.fromkeys(name for _, name in formats))
    check_stored(names, family, profile.export.widest_use, where, others=written(family, profile.student.candidates))
    if profile.export.scheme.activations not in kinds:
        raise SpecError(
            f"{where}: a {profile.student.family!r} student cannot have export.scheme.activations = "
            f"{profile.export.scheme.activations!r}. Allowed: {', '.join(map(repr, kinds))}."
        )
    return family


def check_chosen(profile: Profile, family: ModuleType, config: Mapping[str, Any], formats: Sequence[str]) -> None:
    """Every tensor that the scheme names apart is one of the chosen student's, and all are stored exactly.

    Of one chosen among others the number of a layer is not held against the scheme: others are deeper.

    Raises:
        SpecError: for a name that no tensor has, or a scheme that one of `formats` cannot store such a student in.
    """
    scheme, tensors = profile.export.scheme, family.tensors(family.Config.decode(config, "the student"))
    check_stored(formats, family, profile.export.widest_use, f"profile {profile.name!r}", tensors)
    _check_narrow(profile, tensors, formats)
    known = [tensor.name for tensor in tensors if tensor.grid(scheme) is not None]
    one = len(profile.student.candidates) == 1
    kinds = {name if one else _depthless(name) for name in known}
    for name in scheme.layers:
        if (name if one else _depthless(name)) not in kinds:
            raise SpecError(
                f"profile {profile.name!r}: export.scheme.layers: the student has no weight {name!r}"
                f"{did_you_mean(name, known)}"
            )


def _check_narrow(profile: Profile, tensors: Sequence[StoredTensor], formats: Sequence[str]) -> None:
    """Whatever mixed precision may make narrow is stored exactly: which tensors it chooses is measured in training."""
    mixed, scheme = profile.export.mixed, profile.export.scheme
    narrow = {} if mixed is None else narrowable(tensors, scheme, mixed.narrow)
    tried = scheme.model_copy(update={"layers": {**scheme.layers, **narrow}})
    for name in formats:
        reason = misfit(catalog.constants("exporters", name), tried, tensors)
        if reason is not None:
            raise SpecError(
                f"profile {profile.name!r}: export.mixed.narrow: format {name!r} cannot store exactly {reason}. Take "
                "other sizes, another narrow grid, or leave export.mixed out."
            )


def _depthless(name: str) -> str:
    return re.sub(r"\.\d+\.", ".N.", name)


def resolve(stage: DistilSpec, profile: Profile) -> DistilSpec:
    """The stage with every parameter of its losses written out, defaults included.

    Raises:
        SpecError: for an unknown loss, or a parameter that the loss does not have.
    """
    terms = []
    for number, term in enumerate(stage.losses):
        where = f"profile {profile.name!r}: stage {stage.name!r}, losses[{number}]"
        _known("losses", term.loss, where)
        allowed: Mapping[str, float] = _constant("losses", term.loss, "PARAMS")
        limits: Mapping[str, tuple[float, float]] = _constant("losses", term.loss, "LIMITS")
        for name, value in term.params.items():
            if name not in allowed:
                raise SpecError(f"{where}: loss {term.loss!r} has no parameter {name!r}{did_you_mean(name, allowed)}")
            low, high = limits[name]
            if not low <= value <= high:
                raise SpecError(f"{where}: {name} = {value:g}. Allowed: {low:g} to {high:g}.")
        terms.append(term.model_copy(update={"params": {**allowed, **term.params}}))
    return stage.model_copy(update={"losses": tuple(terms)})


def teacher_outputs(terms: tuple[LossTerm, ...]) -> tuple[str, ...]:
    """What the losses ask of the teacher ("logits", "pooled", …), sorted; "labels" are the data's and left out."""
    needs = {need for term in terms for need in _constant("losses", term.loss, "NEEDS")}
    return tuple(sorted(needs - {"labels"}))


def _known(kind: catalog.PluginKind, name: str, where: str) -> None:
    names = catalog.plugins(kind)
    if name not in names:
        raise SpecError(f"{where}: unknown name {name!r}{did_you_mean(name, names)}")


def _constant(kind: catalog.PluginKind, name: str, constant: str) -> Any:
    found = catalog.constants(kind, name)
    if constant not in found:
        raise SpecError(
            f"edgedistill/{kind}/{name} defines no literal {constant}; a plug-in of this folder must, at its top level,"
            f" so that a plan can be checked before torch is loaded."
        )
    return found[constant]
