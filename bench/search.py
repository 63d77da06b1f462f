"""How long the planner takes to rank a family's whole space, against trying every student in full.

python bench/search.py
"""

import itertools
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from _machine import write

from edgedistill import catalog
from edgedistill.cli.select import select
from edgedistill.plan import make_plan
from edgedistill.plan.costing import cost, fill
from edgedistill.plan.make import _problem
from edgedistill.specs import Budget, Profile

REPEATS = 3
TRIED = 200  # students costed in full, to tell what all would take
FORMATS = {"bert": "tflite", "vit": "tflite", "cnn": "tflite", "llama": "gguf"}
TEACHER = 22_713_216


def seconds(action) -> tuple[float, object]:
    """The least processor time of several runs: other processes only add."""
    spent, found = [], None
    for _ in range(REPEATS):
        began = time.process_time()
        found = action()
        spent.append(time.process_time() - began)
    return min(spent), found


def profile_of(family: str) -> Profile:
    chosen = select("pixel8", "default", search=True).profile
    axes = catalog.load_plugin("students", family).SPACE
    space = chosen.student.space.model_copy(update={"axes": axes})
    student = chosen.student.model_copy(update={"family": family, "space": space})
    scheme = chosen.export.scheme.model_copy(
        update={"activations": "static_int8" if family == "cnn" else "dynamic_int8"}
    )
    export = chosen.export.model_copy(update={"scheme": scheme})
    return chosen.model_copy(update={"student": student, "export": export, "budget": Budget(), "assistants": 0})


def in_full(target, profile, family) -> float:
    """Processor seconds for one student costed by itself."""
    plugin = catalog.load_plugin("students", family)
    problem = _problem([target], [target.budget], profile, plugin, 77, TEACHER, {}, ())
    grid = itertools.product((1, 2, 4, 6), (64, 128, 256), (1, 2, 4), (1000, 2000, 4000, 8000))
    configs = [
        fill(problem, {"layers": a, "width": b, "heads": b // 32, "ffn": b * c, "vocabulary": v}, "bench")
        for a, b, c, v in grid
    ][:TRIED]
    spent, _ = seconds(lambda: [cost(problem, one, profile.export.scheme) for one in configs])
    return spent / len(configs)


def cold() -> float:
    """Processor seconds of `edgedistill plan --search` as a process of its own."""
    command = [sys.executable, "-m", "edgedistill", "plan", "--target", "pixel8", "--search", "--json"]
    spent = []
    for _ in range(REPEATS):
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True, env={**os.environ}, cwd=Path(__file__).parents[1])
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime)
    return min(spent)


def main() -> None:
    rows, each = [], 0.0
    for family, form in FORMATS.items():
        profile = profile_of(family)
        free = catalog.load_target("pixel8").model_copy(update={"formats": (form,)})
        for name, target in (("pixel8", free), ("none", free.model_copy(update={"budget": Budget()}))):
            known = {"rows": 9500, "classes": 77, "teacher_parameters": TEACHER}
            spent, plan = seconds(
                lambda target=target, profile=profile, known=known: make_plan(target, profile, **known)
            )
            counts = plan.search.model_dump()
            rows.append({"family": family, "budget": name, "seconds": spent, "front": len(plan.front), **counts})
        if family == "bert":
            each = in_full(free, profile, family)
    whole = cold()
    lines = [
        "# Searching a family's whole space",
        "",
        "Processor seconds of one core, least of three; the budget is that of the target, or none.",
        "",
        "| family | budget | combinations | invalid | excluded | evaluated | can meet it | s | per 10^5, s |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        share = row["seconds"] * 1e5 / row["combinations"]
        lines.append(
            f"| {row['family']} | {row['budget']} | {row['combinations']:,} | {row['invalid']:,} | {row['excluded']:,} "
            f"| {row['evaluated']:,} | {row['feasible']:,} | {row['seconds']:.2f} | {share:.2f} |"
        )
    all_of_them = each * (rows[0]["combinations"] - rows[0]["invalid"])
    lines += [
        "",
        f"One student costed in full takes {1e3 * each:.2f} ms, so all of bert's would take {all_of_them:.0f} s.",
        f"`edgedistill plan --target pixel8 --search`, cold, all in all: {whole:.2f} s (limit 2).",
    ]
    write("search", {"rows": rows, "in_full_s": each, "cold_s": whole}, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
