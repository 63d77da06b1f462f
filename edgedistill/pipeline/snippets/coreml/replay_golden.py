"""Replay golden.json through model.mlpackage with Apple's own runtime: `python replay_golden.py`, on a Mac.

THIS SCRIPT WAS NOT RUN ON APPLE HARDWARE; on Linux it was run with the reference evaluator in the runtime's place.
It needs macOS 14 (15 for 4-bit weights) and `pip install coremltools==9.0 "numpy<2.4"`, and lies beside the bundle's
files. It prints the largest difference of a logit and exits with 1 if a label differs, or a logit differs by more than
the tolerance, 0.05 of the sample's largest: the runtime computes in fp16, and golden.json was made in float32.
"""

import json
import sys
from pathlib import Path

import coremltools as ct
import numpy as np

TOLERANCE = 0.05


def main(folder: Path) -> int:
    """Replay every sample; returns the exit code."""
    model, worst, wrong = ct.models.MLModel(str(folder / "model.mlpackage")), 0.0, 0
    for sample in json.loads((folder / "golden.json").read_text(encoding="utf-8")):
        told, ids = sample["answers"]["coreml"], sample["input_ids"]
        # a model of one length takes padded texts; one with the signature "any" takes each as it is
        length = int(told["signature"].removeprefix("length_")) if told["signature"] != "any" else len(ids)
        feeds = {name: np.zeros((1, length), np.int32) for name in ("input_ids", "attention_mask")}
        feeds["input_ids"][0, : len(ids)], feeds["attention_mask"][0, : len(ids)] = ids, 1
        found, expected = np.asarray(model.predict(feeds)["logits"])[0], np.asarray(told["logits"])
        difference = float(np.abs(found - expected).max())
        same = difference <= TOLERANCE * float(np.abs(expected).max()) and found.argmax() == expected.argmax()
        sys.stdout.write("" if same else f"{sample['id']}: a logit differs by {difference:.3g}\n")
        worst, wrong = max(worst, difference), wrong + (not same)
    sys.stdout.write(f"largest difference of a logit: {worst:.3g}; samples that do not agree: {wrong}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(Path(__file__).parent))
