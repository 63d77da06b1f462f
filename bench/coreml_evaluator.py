"""How long our evaluator of Core ML programs takes for one sample, beside torch with the student that the file holds.

python bench/coreml_evaluator.py      (a minute on one core; writes results/coreml_evaluator.md)

The weights are random: time does not depend on what was learned. Both run in this process with one thread, in turns.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from _machine import write
from _size_exports import Case, export, frozen_student

from edgedistill import coreml
from edgedistill.specs import QuantScheme
from edgedistill.students import bert, cnn

ROUNDS, WARM = 25, 3
MINILM = bert.Config(layers=6, width=384, heads=12, ffn=1536, vocabulary=30522, max_length=128, classes=77)
SCHEME = QuantScheme(activations="float")
CASES = {  # and the longest that one sample may take in fp32, ms
    "MiniLM, 32 tokens": (Case("coreml", "bert", MINILM, SCHEME, (32,)), 25.0),
    "EfficientNet-lite0, 224 px": (Case("coreml", "cnn", cnn.EFFICIENTNET_LITE0, SCHEME, (1,)), 100.0),
}
PRECISIONS = ("fp32", "fp64", "fp16")


def timed(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - begin)


def measure(case: Case, path: Path) -> dict[str, list[float]]:
    """Milliseconds of each round, by who computed."""
    frozen = frozen_student(case)
    export(case, path)
    (signature,) = frozen.signatures(case.buckets)
    feeds = frozen.sample(signature, np.random.default_rng(0))
    program, module = coreml.load(path), frozen.to_module()
    tensors = [torch.from_numpy(feeds[port.name]) for port in signature.inputs]
    ways: dict[str, Callable[[], object]] = {"torch": lambda: module(*tensors)}
    for precision in PRECISIONS:
        evaluator = coreml.Evaluator(program, precision)
        ways[precision] = lambda evaluator=evaluator: evaluator.predict(feeds)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for _ in range(WARM + ROUNDS):
            for name, run in ways.items():
                taken[name].append(timed(run))
    return {name: values[WARM:] for name, values in taken.items()}


def main() -> None:
    torch.set_num_threads(1)
    rows, figures = [], {}
    for name, (case, limit_ms) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            taken = measure(case, Path(folder) / "student.mlpackage")
        figures[name] = {who: {"least_ms": min(ms), "median_ms": median(ms)} for who, ms in taken.items()}
        for who in PRECISIONS:
            ratio = median(a / b for a, b in zip(taken[who], taken["torch"], strict=True))
            limit = f"{limit_ms:g}" if who == "fp32" else ""
            rows.append(
                f"| {name} | {who} | {min(taken[who]):.1f} | {median(taken[who]):.1f} | {limit} |"
                f" {median(taken['torch']):.1f} | x{ratio:.2f} |"
            )
    head = [
        "# One sample in our evaluator of Core ML programs", "",
        f"`python bench/coreml_evaluator.py`: one thread, {ROUNDS} rounds in turns with torch, which computes the"
        " frozen student in float32. int8 weights, random. *fp16* rounds after each operation.", "",
        "| model | precision | least, ms | median, ms | wanted, ms | torch, median ms | ratio |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    write("coreml_evaluator", figures, "\n".join([*head, *rows]) + "\n")


if __name__ == "__main__":
    main()
