"""What exactness costs, and what is lost without it: our export against litert-torch and ai-edge-quantizer.

python bench/export.py [--store DIR]       (needs a finished default build in the store)

Both start from the same trained student, whose weights lie on its int8 grid already. A converter that is faithful keeps
every code; post-training quantization computes its own scales from weights that the converter has rewritten.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _machine import write

from edgedistill import catalog
from edgedistill.exporters import tflite
from edgedistill.exporters.tflite import reference
from edgedistill.quant import FrozenStudent

REPEATS = 3


def stored_int8(path: Path) -> set[bytes]:
    """Every int8 buffer of a .tflite, whatever its name."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    found = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is not None:
                found.add(np.asarray(data, dtype=np.uint8).tobytes())
    return found


def main(store: Path, work: Path) -> None:
    torch.set_num_threads(1)
    frozen_at = max((store / "freeze").glob("*/student.json"), key=lambda path: path.stat().st_mtime).parent
    frozen = FrozenStudent.load(frozen_at)
    buckets = catalog.load_profile("default").student.buckets
    ours, theirs, quantizing = [], [], []
    for _ in range(REPEATS):  # interleaved, so that a slow minute of the machine falls on both
        start = time.monotonic()
        reference.export_float(frozen.build(), buckets, [], work / "float.tflite")
        theirs.append(time.monotonic() - start)
        start = time.monotonic()
        reference.quantize_after_training(work / "float.tflite", work / "ptq.tflite")
        quantizing.append(time.monotonic() - start)
        start = time.monotonic()
        tflite.export(frozen, buckets, work / "ours.tflite")
        ours.append(time.monotonic() - start)
    kept = {
        name: sum(tensor.codes.tobytes() in stored_int8(work / file) for tensor in frozen.quantized.values())
        for name, file in (("edgedistill", "ours.tflite"), ("litert-torch + ai-edge-quantizer", "ptq.tflite"))
    }
    sizes = {file: (work / file).stat().st_size / 1e6 for file in ("ours.tflite", "ptq.tflite", "float.tflite")}
    floor = frozen.parameter_bytes / 1e6
    total = len(frozen.quantized)
    peer = [a + b for a, b in zip(theirs, quantizing, strict=True)]
    table = "\n".join(
        [
            "# Export of the default student, three signatures",
            "",
            f"Medians of {REPEATS}, one thread. Codes, scales and float tensors alone are {floor:.3f} MB.",
            "",
            "| way | weight tensors whose codes are the trained ones | file, MB | s | ÷ peer |",
            "|---|--:|--:|--:|--:|",
            f"| litert-torch + ai-edge-quantizer | {kept['litert-torch + ai-edge-quantizer']} of {total} "
            f"| {sizes['ptq.tflite']:.3f} | {np.median(peer):.1f} | 1.00 |",
            f"| edgedistill, verified and executed | {kept['edgedistill']} of {total} "
            f"| {sizes['ours.tflite']:.3f} | {np.median(ours):.1f} | {np.median(ours) / np.median(peer):.2f} |",
            "",
        ]
    )
    write(
        "export", {"seconds": {"ours": ours, "peer": peer}, "kept": kept, "sizes_mb": sizes, "floor_mb": floor}, table
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True)
    with tempfile.TemporaryDirectory() as folder:
        main(parser.parse_args().store, Path(folder))
