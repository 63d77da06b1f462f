"""From a workload to the numbers that predict it; what the caller does not know is told from the rest, and named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import exp, log, sqrt
from typing import NamedTuple

from edgedistill.errors import SpecError, did_you_mean
from edgedistill.predict import tables
from edgedistill.predict.classes import LatencyClass
from edgedistill.predict.specs import Workload

# A depthwise k x k convolution does k*k multiply-accumulates for each element it writes: 9 for most, and only some of a
# graph's elements are written by one. More than this over the whole graph are grouped convolutions, traced
# as depthwise (alexnet: 326 for each element), and those run like regular ones.
DEPTHWISE_PER_ELEMENT = 9.0
TRANSFORMER_SHARE = 0.55  # of layers that are no convolution, from which a model is taken for a transformer
SAME = 0.05
NO_SIZE = "res"  # among what is told: at which size the features of the model were counted is not known
FAR = "far"  # among what is told: it is told from more or fewer parameters than any model has that taught how
BY_PIXEL = ("gmacs", "dw_gmacs", "act_in_m", "act_out_m", "peak_act_m")
FIELDS = ("gmacs", "dw_gmacs", "params_m", "act_in_m", "act_out_m", "peak_act_m", "n_ops", "n_conv", "n_dw", "res")


class Features(NamedTuple):
    """One inference. `imputed` names what was told from the rest."""

    gmacs: float
    depthwise_gmacs: float
    params_m: float
    activations_m: float
    peak_act_m: float | None
    n_ops: float
    layers: float
    pixels_m: float
    transformer: bool
    soft_ops: bool
    imputed: tuple[str, ...]

    def terms(self, names: Sequence[str]) -> list[float]:
        """The amount of work of each term, in the order of `names`.

        Where no term is of depthwise multiply-accumulates, all count as regular.
        """
        regular = self.gmacs - (self.depthwise_gmacs if "depthwise_macs_ms" in names else 0.0)
        moved = (self.activations_m + self.params_m) / 10
        amounts = {
            "start_ms": 1.0,
            "layers_ms": self.layers / 100,
            "macs_ms": regular,
            "depthwise_macs_ms": self.depthwise_gmacs,
            "activations_ms": self.activations_m / 10,
            "weights_ms": self.params_m / 10,
            "traffic_ms": moved,
            "reuse_ms": sqrt(regular * moved),
            "input_ms": self.pixels_m,
            "attention_macs_ms": regular if self.transformer else 0.0,
            "soft_macs_ms": regular if self.soft_ops else 0.0,
        }
        return [amounts[name] for name in names]


@cache
def feature_tables() -> dict[str, dict[str, tables.Row]]:
    """Set -> key -> row of model_features.csv."""
    found: dict[str, dict[str, tables.Row]] = {}
    for row in tables.rows("model_features.csv"):
        found.setdefault(row["set"], {})[row["key"]] = row
    return found


@cache
def params_range() -> tuple[float, float]:
    """The fewest and the most parameters of the models with features, 10^6."""
    sizes = [float(row["params_m"]) for found in feature_tables().values() for row in found.values() if row["params_m"]]
    return min(sizes), max(sizes)


@cache
def facts(key: str) -> tables.Row:
    """Family and kinds of operators of a model; of an unknown one nothing."""
    return {row["key"]: row for row in tables.rows("model_facts.csv")}.get(key, {})


@cache
def aliases() -> dict[tuple[str, str], str]:
    """(set, name in the rows) -> key of the features: another spelling, or the input size that the row was run at."""
    return {(row["set"], row["name"]): row["key"] for row in tables.rows("model_aliases.csv")}


def find_row(model: str, one: LatencyClass) -> tables.Row | None:
    """The features of a model as the rows of a class mean it; None: there are none."""
    family = one.name.split()[0]
    key = aliases().get((family, model), model)
    return next((found[key] for name in one.feature_sets if key in (found := feature_tables().get(name, {}))), None)


def features(
    work: Workload, one: LatencyClass, impute: Mapping[str, Mapping[str, float]], row: Mapping[str, str] | None = None
) -> Features | None:
    """The features of a workload for a class; `row` is a latency row that states what the feature table leaves out.

    None if the model is known by its measurements only.

    Raises:
        SpecError: if the model is nowhere and no `gmacs` are given.
    """
    stored = find_row(work.model, one) if work.model else None
    if stored is None and work.gmacs is None:
        if work.model and tables.latency_rows(work.model):
            return None
        raise unknown_model(work.model or "")
    known = {name: getattr(work, name) for name in FIELDS}
    larger = 1.0 if stored is None or work.gmacs is not None else _larger_input(work, stored, row)
    told = () if larger == 1.0 else (f"gmacs and activations (x{larger:.3g})",) if larger else (NO_SIZE,)
    larger = larger or 1.0
    for name, value in known.items():
        if value is None and (own := tables.number((stored or {}).get(name))) is not None:
            known[name] = own * (larger if name in BY_PIXEL else 1.0)
    if work.gmacs is None and (work.dw_gmacs or 0.0) > (known["gmacs"] or 0.0) * (1 + SAME):
        raise SpecError(
            f"dw_gmacs = {work.dw_gmacs:g} is more than gmacs = {known['gmacs'] or 0.0:.4g} of {work.model!r}."
        )
    if known["params_m"] is None and row is not None:
        known["params_m"] = tables.number(row["params_m"])
    known["pixels"] = work.input_pixels or (tables.number(row["pixels"]) if row is not None and not work.res else None)
    known["layers"] = work.graph_layers or (tables.number(row["layers"]) if row is not None else None)
    found = _complete(known, work, one, impute, facts(stored["key"]) if stored is not None else {})
    return found._replace(imputed=(*found.imputed, *told))


def _larger_input(work: Workload, stored: Mapping[str, str], row: Mapping[str, str] | None) -> float:
    """Pixels asked for over those of the stored features: a convolution works for each pixel.

    1 where the caller names no size or that very one, 0 where nothing says at which one the features were counted.
    """
    asked = work.input_pixels or (work.res or 0.0) ** 2
    counted = (tables.number(stored.get("res")) or 0.0) ** 2 or (tables.number(row["pixels"]) if row is not None else 0)
    if not asked:
        return 1.0
    if not counted:
        return 0.0
    return asked / counted if abs(asked / counted - 1) > SAME else 1.0


def describes(work: Workload) -> bool:
    """Whether the caller gives features that are not those of the named model: then its rows are of another work."""
    given = {name: getattr(work, name) for name in FIELDS if getattr(work, name) is not None}
    if not given or not work.model:
        return bool(given)
    keys = {aliases().get((name, work.model), work.model) for name in ("litert", "ncnn", "qualcomm")}
    rows = [found[key] for found in feature_tables().values() for key in keys if key in found]
    return not any(all(_same(row[name], value) for name, value in given.items()) for row in rows)


def _same(cell: str, value: float) -> bool:
    """Whether a stored feature is the given one, as far as published figures are rounded."""
    return cell != "" and abs(float(cell) - value) <= SAME * max(abs(value), abs(float(cell)))


def unknown_model(model: str) -> SpecError:
    """The error for a model that no table knows."""
    keys = {key for found in feature_tables().values() for key in found}
    return SpecError(f"unknown model {model!r}{did_you_mean(model, keys)} Or describe it: gmacs, params_m, n_ops, ...")


def _complete(
    known: Mapping[str, float | None],
    work: Workload,
    one: LatencyClass,
    impute: Mapping[str, Mapping[str, float]],
    fact: Mapping[str, str],
) -> Features:
    gmacs, imputed = known["gmacs"] or 1e-6, []
    transformer = work.transformer
    if transformer is None:
        transformer = fact["transformer"] == "1" if fact else _looks_like_transformer(known)
    soft = work.soft_ops if work.soft_ops is not None else (fact["soft_ops"] == "1" if fact else transformer)
    basis = {"one": 1.0, "gmacs": log(gmacs), "transformer": float(transformer)}

    def told(name: str, value: float | None) -> float:
        if value is not None and (value > 0 or name == "dw_gmacs"):
            return value
        imputed.append(name)
        return exp(sum(factor * basis[term] for term, factor in impute[name].items()))

    params = told("params_m", known["params_m"])
    least, most = params_range()
    basis["params_m"] = log(min(max(params, least), most))
    n_ops = told("n_ops", known["n_ops"])
    basis["n_ops"] = log(n_ops)
    read, written = known["act_in_m"], known["act_out_m"]
    both = (
        None
        if read is None and written is None
        else (read if read is not None else written or 0.0) + (written if written is not None else read or 0.0)
    )
    activations = told("activations_m", both)
    depthwise = depthwise_gmacs(known["dw_gmacs"] or 0.0, activations, gmacs)
    if not least <= params <= most and {"n_ops", "activations_m"}.intersection(imputed):
        imputed.append(FAR)
    layers = told("layers", known["layers"]) if one.compiled else n_ops
    pixels = known["pixels"] or (known["res"] or 0.0) ** 2
    return Features(
        gmacs,
        depthwise,
        params,
        activations,
        known["peak_act_m"],
        n_ops,
        layers,
        told("pixels", pixels) / 1e6,
        transformer,
        soft,
        tuple(imputed),
    )


def depthwise_gmacs(given: float, activations_m: float, gmacs: float) -> float:
    """The depthwise share of the multiply-accumulates, without what grouped convolutions were traced as."""
    return min(given, DEPTHWISE_PER_ELEMENT * activations_m / 2 / 1e3, gmacs)


def _looks_like_transformer(known: Mapping[str, float | None]) -> bool:
    ops, convolutions = known["n_ops"], known["n_conv"]
    return ops is not None and convolutions is not None and (ops - convolutions) > TRANSFORMER_SHARE * ops
