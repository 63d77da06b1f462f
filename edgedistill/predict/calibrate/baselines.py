"""What simpler models are worth on the same rows and folds: a fit that does not beat them is not worth its terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from edgedistill.predict.calibrate.crossval import FOLDS, folds, mdape
from edgedistill.predict.calibrate.llm_fit import LlmSamples
from edgedistill.predict.calibrate.samples import Floats, Samples

RIDGE = 0.01
Mask = NDArray[np.bool_]


def of_class(data: Samples) -> dict[str, float]:
    """MdAPE on models held out: multiply-accumulates alone, and a log-linear model; each with a speed of the device."""
    work = data.terms[:, [data.one.terms.index("macs_ms")]]
    varied = data.terms[:, data.terms.std(0) > 0]

    def macs(train: Mask) -> Floats:
        away = data.log_ms - np.log(work[:, 0])
        return np.asarray(np.log(work[:, 0]) + _by_label(away, data.group.tolist(), train))

    def log_linear(train: Mask) -> Floats:
        logs = np.log(varied + 0.01 * varied.mean(0))
        groups = (data.group[:, None] == np.arange(len(data.groups))).astype(float)
        matrix = np.concatenate([logs, groups], axis=1)
        ridge = np.diag([RIDGE] * matrix.shape[1])
        mean = data.log_ms[train].mean()
        normal = matrix[train].T @ matrix[train] + ridge
        return np.asarray(mean + matrix @ np.linalg.solve(normal, matrix[train].T @ (data.log_ms[train] - mean)))

    models = {"macs_only": macs, "log_linear": log_linear}
    return {name: _held_out(data.log_ms, data.model, told, 2 * FOLDS) for name, told in models.items()}


def of_language(data: LlmSamples, bits: Mapping[str, float]) -> dict[str, float]:
    """MdAPE on models held out: a rate for each device, unit and quantization; bytes over a bandwidth of the unit."""
    read = np.log(data.amount * np.array([bits[quant] for quant in data.quant]))
    cells = ["|".join(one) for one in zip(data.unit, data.quant, strict=True)]

    def table(train: Mask) -> Floats:
        return np.asarray(np.log(data.amount) + _by_label(data.log_s - np.log(data.amount), cells, train))

    def bandwidth(train: Mask) -> Floats:
        return np.asarray(read + _by_label(data.log_s - read, list(data.unit), train))

    models = {"rate_by_parameters": table, "bytes_over_bandwidth": bandwidth}
    return {name: _held_out(data.log_s, data.model, told, len(set(data.model))) for name, told in models.items()}


def _held_out(wanted: Floats, labels: tuple[str, ...], told: Callable[[Mask], Floats], count: int) -> float:
    error = np.full(len(wanted), np.nan)
    for out in folds(labels, count):
        error[out] = (wanted - told(~out))[out]
    return round(mdape(error[~np.isnan(error)]), 1)


def _by_label(values: Floats, labels: list[object] | list[str] | list[int], train: Mask) -> Floats:
    """For each row the median of the rows of its label in `train`; NaN where there are none."""
    names = np.array(labels)
    found = np.full(len(values), np.nan)
    for name in np.unique(names):
        mine = names == name
        if (mine & train).any():
            found[mine] = np.median(values[mine & train])
    return found
