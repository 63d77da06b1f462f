"""Fit the predictor to the published measurements and say how well it predicts what it has not seen.

python bench/calibrate.py [--nested | --from FOLDER]      (FOLDER: published tables, to rewrite the copies that ship)
"""

import argparse
import json
import time
from pathlib import Path

from edgedistill.predict.calibrate import calibrate
from edgedistill.predict.calibrate.llm import nested_llm
from edgedistill.predict.calibrate.nested import nested
from edgedistill.predict.calibrate.run import simpler, table, written
from edgedistill.predict.calibrate.samples import fit_imputation
from edgedistill.predict.tables import COEFFICIENTS

RESULTS = Path(__file__).parent / "results"
HEAD = """# What the predictor is worth on what it has not seen

Cross-validated; every figure is of held-out rows. `python bench/calibrate.py` makes this file and the coefficients.
*new model*, *new family*: a calibrated device, the model (or all its relatives) never seen. *known model, chip has not
run it*: other chips measured it. *new chip*: nothing of the chip was seen; with 0 anchors from specifications alone,
with 3 or 5 after so many own measurements of other models, in the way of `calibrate_device`; *anchors known*: other
chips have measured those models. *same rows, 0 anchors*: what the same rows had without them. *traced*: models whose
activations and layers are known, not told from their MACs. *chips or models*: how many were held out in turn. An
interval's coverage is that of intervals made of the other chips' (or models') errors; *(few)*: fewer than 3 chips or
models, or 30 rows, so that the interval is the wider of its own and that of the unit's other classes, and the coverage
says little. Of classes of 3 to 10 chips or models, one chip moves it by 10 % and more; each class of more lies between
75 and 85 %, and so do all precisions together but for Paddle's new models (74). Intervals of 5 to 10 are stretched
until all but one of them, each in turn, foretell the one left out.
*95% sure*: what the true coverage may be, by as many independent cases as there are (rows of a chip or model err
alike). *high / low*: how wide the intervals are. *all precisions*: the rows of one runtime and unit together.

*layers told*: the same rows, where nothing is known of the compiled graph and its layers are told from the model's own;
so a model is predicted that is described by its features alone.

Of language models, *new model* leaves one of nine out; deepseek-r1-distill-qwen-1.5b and qwen2.5-1.5b are built alike,
and so are the two recurrent ones. *new family* leaves such models out together. Those are rows of one application on
three phones; *other applications*: each model of the others left out, told from the other models on its device and
unit, in its build and quantization.

"""
SIMPLER = """
## Beside simpler models

New models on calibrated devices, the same rows and folds. *rate by parameters* is tokens per second x parameters of
each device, unit and quantization; *bytes over bandwidth* one bandwidth for each unit.

"""
NESTED = """# With nothing chosen on what it is judged by

`python bench/calibrate.py --nested`. For each held-out family (or model), terms and ridge are chosen by the errors of
the others, each held out in turn, then fitted to them: 24 sets of terms with 2 ridges each, by the median error; of
compiled graphs 8 sets, by the mean error with a factor of 2 at most; of language models the two ridges. *As shipped*
is `calibration.md`'s figure for the same rows: the choice was made once, on all of them, and up to 40 parts were held
out. Here they are 12 parts (the choice: 3), of w8a8 and w8a16 each model by itself (the choice: 6), and nothing is told
by specifications.

"""


def choices() -> None:
    shipped = {
        (row["class"], row["split"]): row["mdape"]
        for row in json.loads((RESULTS / "calibration.json").read_text(encoding="utf-8"))
    }
    lines = ["| class | held out | rows | MdAPE % | as shipped, MdAPE % | within x1.5 % |", "|---|---|--:|--:|--:|--:|"]
    for row in [*nested(fit_imputation()), *nested_llm()]:
        key = row["class"], row["split"]
        cells = [*key, row["rows"], row["mdape"], shipped.get(key, ""), row["within_1.5x"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    text = NESTED + "\n".join(lines) + "\n"
    (RESULTS / "calibration_nested.md").write_text(text, encoding="utf-8")
    print(text)


def main(raw: Path | None) -> None:
    started = time.perf_counter()
    coefficients, figures = calibrate(raw)
    COEFFICIENTS.write_text(written(coefficients), encoding="utf-8")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "calibration.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "calibration.md").write_text(HEAD + table(figures) + SIMPLER + simpler(figures), encoding="utf-8")
    print(table(figures), f"{time.perf_counter() - started:.0f} s; wrote {COEFFICIENTS.name} and results/calibration.*")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="raw", type=Path, help="folder with vision_latency.csv and its neighbours")
    parser.add_argument("--nested", action="store_true", help="what choosing terms is worth, in place of calibration")
    asked = parser.parse_args()
    choices() if asked.nested else main(asked.raw)
