"""The published tables, reduced to what calibration and exact lookup need, as CSV files that ship with the package."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

LATENCY = (
    "model", "precision", "runtime", "unit", "threads", "device", "chipset", "ms", "init_ms", "peak_mb", "layers",
    "other_layers", "nodes", "params_m", "size_mb", "pixels", "mode", "release", "source",
)  # fmt: skip
LLM = (
    "model", "params_b", "quant", "file_mb", "device", "chip", "runtime", "unit", "threads", "ctx", "pp_tokens",
    "tg_tokens", "pp_tps", "tg_tps", "weights_mib", "kv_mib", "compute_mib", "source",
)  # fmt: skip
COPIED = ("model_features.csv", "device_specs.csv", "energy.csv")


def unit_of(name: str) -> str:
    """`ANE (CoreML ALL)` -> npu: one of cpu, gpu, npu."""
    text = name.lower()
    if text.startswith("gpu"):
        return "gpu"
    return "cpu" if text.startswith("cpu") else "npu"


def reduce(raw: Path, out: Path) -> None:
    """Write the reduced copies of the tables in `raw` to `out`; the same input gives the same bytes."""
    out.mkdir(parents=True, exist_ok=True)
    sources: dict[str, int] = {}
    with (raw / "vision_latency.csv").open(encoding="utf-8", newline="") as file:
        rows = [_latency(row, sources) for row in csv.DictReader(file) if row["inference_ms"]]
    _write(out / "latency.csv", LATENCY, rows)
    with (raw / "llm_throughput.csv").open(encoding="utf-8", newline="") as file:
        _write(out / "llm.csv", LLM, [_llm(row, sources) for row in csv.DictReader(file)])
    _write(out / "devices_measured.csv", ("device", "chipset"), _devices(out))
    _write(out / "sources.csv", ("id", "source"), [{"id": n, "source": text} for text, n in sources.items()])
    for name in COPIED:
        (out / name).write_bytes((raw / name).read_bytes())


def _latency(row: Mapping[str, str], sources: dict[str, int]) -> dict[str, object]:
    note, source = row["note"], row["source"]
    mode = re.search(r"powersave=(\d)", note)
    nodes = re.search(r"delegated (\d+/\d+)", note)
    release = re.search(r"ai-hub-models@(v[\d.]+)", source)
    other = sum(int(float(row[key])) for key in ("layers_gpu", "layers_cpu") if row[key])
    return {
        "model": row["model"] + (f":{row['component']}" if row["component"] else ""),
        "precision": row["precision"].split(" (")[0],
        "runtime": row["runtime"],
        "unit": unit_of(row["compute_unit"]),
        "threads": row["threads"],
        "device": row["device"],
        "chipset": "" if row["chipset"] == row["device"] else row["chipset"],
        "ms": row["inference_ms"],
        "init_ms": row["init_ms"],
        "peak_mb": row["peak_mem_max_mb"],
        "layers": row["layers_npu"].removesuffix(".0"),
        "other_layers": other or "",
        "nodes": nodes[1] if nodes else "",
        "params_m": row["params_m"],
        "size_mb": row["size_mb"],
        "pixels": _pixels(row["input_res"]),
        "mode": mode[1] if mode else "",
        "release": release[1] if release else "",
        "source": _source(source, sources),
    }


def _llm(row: Mapping[str, str], sources: dict[str, int]) -> dict[str, object]:
    kept: dict[str, object] = {key: row[key] for key in LLM if key in row}
    return {**kept, "unit": unit_of(row["backend"]), "source": _source(row["source"], sources)}


def _devices(out: Path) -> list[dict[str, object]]:
    """Every measured device once with its chip: so that a name is known without reading all rows."""
    found: dict[str, str] = {}
    for name, chip in (("latency.csv", "chipset"), ("llm.csv", "chip")):
        with (out / name).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["device"], row[chip])
    return [{"device": name, "chipset": chip} for name, chip in found.items()]


def _pixels(text: str) -> str:
    """`1024x2048` -> 2097152; nothing for token counts and the like."""
    sides = re.match(r"(\d+)x(\d+)(?!x)", text)
    if sides and min(int(sides[1]), int(sides[2])) >= 32:
        return str(int(sides[1]) * int(sides[2]))
    square = re.fullmatch(r"(\d+)(?:\.0)?", text)
    return str(int(square[1]) ** 2) if square and int(square[1]) >= 32 else ""


def _source(text: str, sources: dict[str, int]) -> int:
    """The number of a source, without the part that names one file or job of it."""
    return sources.setdefault(re.split(r" qai_hub_models/| closed/", text)[0], len(sources))


def _write(path: Path, header: Iterable[str], rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(header), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
