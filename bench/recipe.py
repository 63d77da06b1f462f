"""Choose hyper-parameters on validation rows: variants of the default, over seeds; the held-out rows are not touched.

python bench/recipe.py [--seeds 0 1 2] [VARIANT ...]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _machine import write

from edgedistill import catalog, pipeline
from edgedistill.pipeline.arms import ARMS, arm_profile
from edgedistill.specs import Profile, Silent
from edgedistill.store import Store

VALIDATION = 0.15  # 1 420 rows: a standard error of 0.7 points for one run


def student(profile: Profile, **changes: object) -> Profile:
    sizes = {**profile.student.candidates[0], **changes}
    vocabulary = sizes.pop("vocabulary", profile.student.vocabulary)
    changed = profile.student.model_copy(update={"candidates": (sizes,), "vocabulary": vocabulary})
    return profile.model_copy(update={"student": changed})


def started(profile: Profile, init: str) -> Profile:
    return profile.model_copy(update={"student": profile.student.model_copy(update={"init": init})})


def stages(profile: Profile, **changes: object) -> Profile:
    changed = tuple(stage.model_copy(update=changes) for stage in profile.stages)
    return profile.model_copy(update={"stages": changed})


def slower(profile: Profile, factor: float) -> Profile:
    changed = tuple(s.model_copy(update={"learning_rate": s.learning_rate * factor}) for s in profile.stages)
    return profile.model_copy(update={"stages": changed})


def weights(profile: Profile, **by_loss: float) -> Profile:
    def swap(stage):
        terms = tuple(term.model_copy(update={"weight": by_loss.get(term.loss, term.weight)}) for term in stage.losses)
        return stage.model_copy(update={"losses": terms})

    return profile.model_copy(update={"stages": tuple(swap(stage) for stage in profile.stages)})


def longer(profile: Profile, factor: float) -> Profile:
    changed = tuple(stage.model_copy(update={"epochs": stage.epochs * factor}) for stage in profile.stages)
    return profile.model_copy(update={"stages": changed})


def without_transfer(profile: Profile) -> Profile:
    data = profile.data.model_copy(update={"transfer_factor": 0})
    return longer(profile.model_copy(update={"data": data}), 2)


VARIANTS: dict[str, Callable[[Profile], Profile]] = {
    "default": lambda p: p,
    "vocabulary 1700": lambda p: student(p, vocabulary=1700),
    "width 96, vocabulary 1700": lambda p: student(p, width=96, ffn=384, vocabulary=1700),
    "width 96, 3 layers, vocabulary 1700": lambda p: student(p, layers=3, width=96, ffn=384, vocabulary=1700),
    "1 layer": lambda p: student(p, layers=1),
    "3 layers": lambda p: student(p, layers=3),
    "random start": lambda p: started(p, "random"),
    "layers start": lambda p: started(p, "layers"),
    "layers start, half the rate": lambda p: slower(started(p, "layers"), 0.5),
    "cosine weight 5": lambda p: weights(p, pooled_cosine=5.0),
    "cosine weight 0": lambda p: weights(p, pooled_cosine=0.0),
    "no labels": lambda p: weights(p, cross_entropy=0.0),
    "mask 0.2": lambda p: stages(p, mask_rate=0.2),
    "mask 0": lambda p: stages(p, mask_rate=0.0),
    "ema 0.995": lambda p: stages(p, ema_decay=0.995),
    "twice as long": lambda p: longer(p, 2),
    "no transfer set, same steps": without_transfer,
    **{f"arm: {name}": (lambda p, name=name: arm_profile(p, name)) for name in ARMS},
}


def validation(profile: Profile, store: Store) -> dict[str, float]:
    start = time.monotonic()
    _, trained = pipeline.train_student(
        catalog.load_target("host"), profile, store=store, base=Path(), progress=Silent()
    )
    facts = {name: json.loads(done.file("facts.json").read_text()) for name, done in trained.stages.items()}
    teacher = json.loads(trained.recorded.file("facts.json").read_text())["validation"]["accuracy"]
    first, last = facts[profile.stages[0].name], facts[profile.stages[-1].name]
    return {
        "float": first["validation"]["accuracy"],
        "int8": last["validation"]["accuracy"],
        "teacher": teacher,
        "seconds": time.monotonic() - start,
    }


def table(found: dict[str, list[dict[str, float]]]) -> str:
    lines = [
        "# Chosen on validation rows",
        "",
        "| variant | int8 by seed, % | mean | float, mean | teacher, mean | s |",
    ]
    lines += ["|---|---|--:|--:|--:|--:|"]
    for name, runs in found.items():
        mean = {key: statistics.mean(run[key] for run in runs) for key in runs[0]}
        seeds = " / ".join(f"{run['int8'] * 100:.2f}" for run in runs)
        figures = " | ".join(f"{mean[key] * 100:.2f}" for key in ("int8", "float", "teacher"))
        lines.append(f"| {name} | {seeds} | {figures} | {mean['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("variants", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    folder = options.store or Path(tempfile.mkdtemp())
    profile = catalog.load_profile("default")
    data = profile.data.model_copy(update={"validation_fraction": VALIDATION})
    profile = profile.model_copy(update={"data": data, "threads": options.threads})
    found: dict[str, list[dict[str, float]]] = {}
    for name in options.variants or VARIANTS:
        for seed in options.seeds:
            seeded = VARIANTS[name](profile.model_copy(update={"seed": seed}))
            found.setdefault(name, []).append(validation(seeded, Store(folder)))
            print(name, seed, found[name][-1], flush=True)
    write("recipe", {"runs": found, "validation_fraction": VALIDATION}, table(found))
