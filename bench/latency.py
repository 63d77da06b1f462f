"""The shipped file against the teacher and against the student's other forms, on this host, at every text length.

python bench/latency.py [--store DIR]      (builds the default first, or finds it in the store)
"""

import argparse
import tempfile
from pathlib import Path

from _machine import write

from edgedistill import catalog, pipeline
from edgedistill.data import read_splits
from edgedistill.exporters.tflite import reference
from edgedistill.pipeline import proofs, steps
from edgedistill.runners import Job
from edgedistill.runners.host import Timing, measure_many
from edgedistill.store import Store
from edgedistill.tasks import text_classification as task
from edgedistill.teachers import _network as networks

LAUNCHES = 7


def newest(store: Path, stage: str, file: str) -> Path:
    return max((store / stage).glob(f"*/{file}"), key=lambda path: path.stat().st_mtime)


def main(store: Path, work: Path) -> None:
    profile, target = catalog.load_profile("default"), catalog.load_target("pixel8")
    result = pipeline.build(target, profile, store=Store(store), out=work / "out", base=Path())
    teacher, tokenizer, _ = networks.load(newest(store, "teacher", "teacher.json").parent)
    texts = [row.text for row in read_splits(newest(store, "data", "labels.json").parent).held_out]
    small = steps.load_tokenizer(newest(store, "start", "config.json").parent)
    references = newest(store, "references-student", "student_float.tflite").parent
    rows, figures = [], {}
    for length in profile.student.buckets:
        big_ids = task.encode(tokenizer, texts[:32], length)
        reference.export_float(teacher, [length], big_ids, work / f"teacher_{length}.tflite")
        small_inputs = proofs.padded(task.encode(small, texts[:32], length), length, task.pad_id(small))
        big_inputs = proofs.padded(big_ids, length, task.pad_id(tokenizer))
        signature = f"length_{length}"
        jobs = {
            "teacher, float": Job(work / f"teacher_{length}.tflite", signature, big_inputs),
            "student, float": Job(references / "student_float.tflite", signature, small_inputs),
            "student, post-training int8": Job(references / "student_ptq.tflite", signature, small_inputs),
            "student, shipped": Job(result.folder / "model.tflite", signature, small_inputs),
        }
        seen = measure_many(jobs, launches=LAUNCHES, timing=Timing())
        shipped = seen["student, shipped"].latency_p50_ms
        for name, one in seen.items():
            figures[f"{name} @ {length}"] = one.model_dump(mode="json", exclude={"samples_ms"})
            p50, p95 = one.latency_p50_ms, one.latency_p95_ms
            ratio = p50 / shipped
            rows.append(f"| {length} | {name} | {p50:.3f} | {p95:.3f} | {ratio:.2f} | {one.peak_memory_mb:.1f} |")
    head = ["# Latency on this host, one thread", "", f"{LAUNCHES} launches each, interleaved.", ""]
    head += [
        "| tokens | file | p50, ms | p95, ms | p50 ÷ shipped | peak of the process, MB |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    write("latency", {"measurements": figures}, "\n".join([*head, *rows]) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        main(options.store or Path(folder) / "store", Path(folder))
