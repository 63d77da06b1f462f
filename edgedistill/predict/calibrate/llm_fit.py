"""The fit of language models' rates: seconds for each token by what is read or multiplied, and by layers.

    seconds = exp(cell) * parameters + exp(layer cost of the unit) * layers + exp(recurrent cost) * recurrent layers

A cell is a device, unit and quantization. What a layer costs beside its weights (norms, attention, launching its
operators) does not depend on how the weights are stored, and neither does the state of a recurrent layer. All costs
are exponentials, so none is negative; those of layers are drawn to the mean of the units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgedistill.predict import tables
from edgedistill.predict.calibrate.samples import Floats, Ints
from edgedistill.predict.llm_features import LAYERS_IN, LlmFeatures, llm_features, quant_of
from edgedistill.predict.specs import LlmWorkload

SPREAD = 0.1  # log error from which a row counts less
CELL_RIDGE = 1e-3
ROUNDS = 30
Row = Mapping[str, str]


class Ridges(NamedTuple):
    """How much units are drawn to their mean, and that mean to a tenth of what 10^9 parameters cost."""

    unit: float
    mean: float


# Chosen by models held out of the choice as well (bench/results/calibration_nested.md): more shrinkage is worse there.
RIDGES = Ridges(0.03, 0.01)
MENU = (Ridges(1.0, 0.1), Ridges(0.3, 0.1), Ridges(0.1, 0.03), Ridges(0.03, 0.01))


@dataclass(frozen=True)
class LlmFit:
    """Log seconds: for 10^9 parameters by cell; for `LAYERS_IN` layers and recurrent layers by unit; their means."""

    cells: dict[tuple[str, str], float]
    units: dict[str, tuple[float, float]]
    mean: tuple[float, float]


@dataclass(frozen=True)
class LlmSamples:
    """One phase: for each row its unit and quantization, model, log seconds, parameters and layers."""

    unit: tuple[str, ...]
    quant: tuple[str, ...]
    model: tuple[str, ...]
    log_s: Floats
    amount: Floats
    layers: Floats  # rows x (all, recurrent), in LAYERS_IN

    def of(self, rows: Sequence[int]) -> LlmSamples:
        """Some of the rows."""
        unit, quant, model = (tuple(column[n] for n in rows) for column in (self.unit, self.quant, self.model))
        log_s, amount, layers = (column[list(rows)] for column in (self.log_s, self.amount, self.layers))
        return LlmSamples(unit, quant, model, log_s, amount, layers)


def samples(rows: Sequence[Row], phase: str, column: str) -> LlmSamples:
    """The rows of a phase as arrays."""
    features = [llm_features(workload(row)) for row in rows]
    return LlmSamples(
        tuple(unit_key(row) for row in rows),
        tuple(quant_of(row["quant"]) for row in rows),
        tuple(row["model"] for row in rows),
        -np.log([float(row[column]) for row in rows]),
        np.array([amount(one, phase) for one in features]),
        np.array([[one.layers, one.recurrent_layers] for one in features]) / LAYERS_IN,
    )


def fit_cells(data: LlmSamples, ridges: Ridges = RIDGES) -> LlmFit:
    """Cells and layer costs of one phase; pseudo-Huber loss of log seconds, Gauss-Newton."""
    cells, units = sorted(set(zip(data.unit, data.quant, strict=True))), sorted(set(data.unit))
    cell = np.array([cells.index(key) for key in zip(data.unit, data.quant, strict=True)])
    unit = np.array([units.index(key) for key in data.unit])
    typical = float(np.median(data.log_s - np.log(data.amount)))
    kinds = data.layers.shape[1]
    start = np.concatenate([np.full(len(cells), typical), np.full(kinds * (len(units) + 1), typical)])
    penalty = _penalty(len(cells), len(units), kinds, ridges)
    solved = _solve(start, penalty, cell, unit, data)
    extra = solved[len(cells) :].reshape(len(units) + 1, kinds)
    return LlmFit(
        dict(zip(cells, map(float, solved), strict=False)),
        {key: (float(one[0]), float(one[1])) for key, one in zip(units, extra, strict=False)},
        (float(extra[-1, 0]), float(extra[-1, 1])),
    )


def _penalty(cells: int, units: int, kinds: int, ridges: Ridges) -> Floats:
    """The quadratic form that draws cells to the start, units to the mean, and the mean to the start."""
    size = cells + kinds * (units + 1)
    form = np.zeros((size, size))
    form[range(cells), range(cells)] = CELL_RIDGE
    for kind in range(kinds):
        mean = cells + kinds * units + kind
        form[mean, mean] += ridges.mean
        for unit in range(units):
            own = cells + kinds * unit + kind
            form[own, own] += ridges.unit
            form[mean, mean] += ridges.unit
            form[own, mean] -= ridges.unit
            form[mean, own] -= ridges.unit
    return form


def _solve(start: Floats, penalty: Floats, cell: Ints, unit: Ints, data: LlmSamples) -> Floats:
    now, each, kinds = start.copy(), np.arange(len(cell)), data.layers.shape[1]
    first = int(cell.max()) + 1
    columns = [first + kinds * unit + kind for kind in range(kinds)]
    for _ in range(ROUNDS):
        weights = np.exp(now[cell]) * data.amount
        extra = [np.exp(now[column]) * data.layers[:, kind] for kind, column in enumerate(columns)]
        total = weights + sum(extra)
        residual = data.log_s - np.log(total)
        robust = 1 / np.sqrt(1 + (residual / SPREAD) ** 2)
        slope = np.zeros((len(cell), len(now)))
        slope[each, cell] = weights / total
        for column, part in zip(columns, extra, strict=True):
            slope[each, column] = part / total
        step = np.linalg.solve(
            (slope * robust[:, None]).T @ slope + penalty, slope.T @ (robust * residual) - penalty @ (now - start)
        )
        now = now + np.clip(step, -1, 1)
    return now


def log_seconds(fit: LlmFit, data: LlmSamples) -> Floats:
    """Predicted log seconds for each token; NaN for a row whose cell was never measured."""
    cells = np.array([fit.cells.get(key, np.nan) for key in zip(data.unit, data.quant, strict=True)])
    extra = np.exp([fit.units.get(key, fit.mean) for key in data.unit]) * data.layers
    return np.asarray(np.log(np.exp(cells) * data.amount + extra.sum(1)))


def relative(fit: LlmFit) -> tuple[float, float]:
    """What `LAYERS_IN` layers cost in 10^9 parameters of the same unit, in the middle of the units: for devices that
    are known by specifications alone.
    """
    found: list[list[float]] = [[], []]
    for unit, extra in fit.units.items():
        typical = float(np.mean([value for (key, _), value in fit.cells.items() if key == unit]))
        for kind, value in enumerate(extra):
            found[kind].append(float(np.exp(value - typical)))
    return float(np.median(found[0])), float(np.median(found[1]))


def workload(row: Row) -> LlmWorkload:
    """The workload that a row measured."""
    return LlmWorkload(model=row["model"], params_b=tables.number(row["params_b"]))


def unit_key(row: Row) -> str:
    """Device and unit of a row."""
    return f"{row['device']}|{row['unit']}"


def amount(one: LlmFeatures, phase: str) -> float:
    """Parameters that a phase handles for each token, 10^9."""
    return one.decode_b if phase == "decode" else one.prefill_b
