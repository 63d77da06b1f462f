"""A row of the very model, device, runtime, unit and precision is the answer, for every quantity that it states."""

from __future__ import annotations

from itertools import islice

import pytest

from edgedistill.errors import SpecError
from edgedistill.predict import DeviceSpecs, Workload, predict, predict_all, tables


def of_row(row: tables.Row, **changed: object) -> Workload:
    return Workload(
        **{key: row[key] for key in ("model", "runtime", "unit", "precision")},  # type: ignore[arg-type]
        threads=int(row["threads"]) if row["threads"].isdigit() else 1,
        **changed,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("runtime", "unit"),
    [("Paddle-Lite v2.11", "gpu"), ("qnn_dlc", "cpu"), ("OpenVINO", "cpu"), ("MNN", "cpu")],
)
def test_a_row_is_found_where_nothing_else_is_known_of_the_runtime_and_unit(runtime: str, unit: str) -> None:
    rows = [row for row in tables.rows("latency.csv") if (row["runtime"], row["unit"]) == (runtime, unit)]
    assert rows
    for row in rows:
        found = predict(row["device"], of_row(row))
        assert (found.level, found.median) == ("exact row", pytest.approx(float(row["ms"]))), row
    with pytest.raises(SpecError, match="no measurements of runtime"):
        predict("galaxy_a14", of_row(rows[0]))


@pytest.mark.parametrize(("column", "quantity"), [("peak_mb", "peak_memory_mb"), ("init_ms", "first_load_ms")])
@pytest.mark.parametrize("start", ["LiteRT", "tflite", "qnn_dlc", "onnx"])
def test_memory_and_first_load_of_a_row_are_those_that_it_states(column: str, quantity: str, start: str) -> None:
    rows = (
        row
        for row in tables.rows("latency.csv")
        if row["runtime"].startswith(start) and row["release"] in ("", "v0.47.0")
    )
    stating = [row for row in islice(rows, 0, None, 5) if row[column] and float(row[column]) > 0]
    assert stating or (column, start) != ("peak_mb", "qnn_dlc")
    for row in stating:
        found = predict(row["device"], of_row(row), quantity)
        assert found.level == "exact row", row
        assert found.low <= float(row[column]) <= found.high, row


def test_another_file_or_device_has_memory_that_is_told() -> None:
    work = {"model": "resnet50", "runtime": "litert", "unit": "cpu", "precision": "fp32"}
    exact = predict("pixel9_pro", Workload(**work), "peak_memory_mb")  # type: ignore[arg-type]
    told = predict("pixel8", Workload(**work), "peak_memory_mb")  # type: ignore[arg-type]
    larger = predict("pixel9_pro", Workload(**work, file_mb=400.0), "peak_memory_mb")  # type: ignore[arg-type]
    assert (exact.level, told.level, larger.level) == ("exact row", "fitted", "fitted")
    assert told.low < exact.median < told.high
    assert larger.median > 2 * exact.median


def test_a_model_of_rows_alone_says_what_is_missing_elsewhere() -> None:
    work = Workload(model="act", runtime="qnn", unit="npu", precision="float")
    assert "peak_memory_mb" in {one.quantity for one in predict_all("Dragonwing IQ-9075 EVK", work)}
    with pytest.raises(SpecError, match="'act' has no features, and no row states its memory on a board"):
        predict(DeviceSpecs(name="a board", npu_int8_tops=20.0), work, "peak_memory_mb")
