"""Spaces of each family, small enough to try every student, and the problem that a plan solves in one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgedistill import catalog
from edgedistill.plan.make import _problem
from edgedistill.plan.problem import Problem
from edgedistill.specs import Budget, Profile, Target

Make = Callable[..., Profile]
PHONE = catalog.load_target("pixel8")
SMALL_SPACE = {"layers": [1, 2, 3], "width": [32, 64, 96], "head_width": [16, 32], "ffn_ratio": [1, 2],
               "vocabulary": [500, 1000, 3000]}  # fmt: skip
FREE = Budget()


def spaced(profile: Make, axes: dict[str, Any], *, mixed: bool = False, **changes: Any) -> Profile:
    student = {"candidates": [], "space": {"axes": axes, "mixed_precision": mixed}, **changes.pop("student", {})}
    return profile(student=student, **changes)


def problem_of(profile: Profile, *targets: Target) -> Problem:
    family = catalog.load_plugin("students", profile.student.family)
    budgets = [one.budget.tightened(profile.budget) for one in targets]
    return _problem(targets, budgets, profile, family, 5, 22_700_000, {}, ())


FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "bert": (SMALL_SPACE, {}, "tflite"),
    "bert static": (SMALL_SPACE, {"activations": "static_int8"}, "tflite"),
    "bert one table": ({**SMALL_SPACE, "vocabulary": [5000]}, {}, "tflite"),  # larger than the profile's own
    "bert coreml": ({**SMALL_SPACE, "vocabulary": [500, 16000]}, {}, "coreml"),  # zero points, unless anything is int4
    "bert gguf": ({**SMALL_SPACE, "width": [32, 64]}, {}, "gguf"),
    "vit": (
        {"image_size": [32, 48], "patch": [8], "layers": [1, 3, 4], "width": [32, 64], "heads": [2, 4],
         "ffn_ratio": [2, 3]}, {}, "onnx",
    ),
    "llama": (
        {"layers": [1, 2, 4], "width": [64, 96], "heads": [4, 3], "kv_heads": [1, 2], "head_width": [32],
         "ffn_ratio": [2], "vocabulary": [400, 900, 3000]}, {}, "gguf",
    ),
    "cnn": (
        {"image_size": [32, 48], "stem_width": [16], "head_width": [64, 32], "width_multiple": [0.5, 1, 1.5],
         "depth_multiple": [0.5, 1, 2],
         "stages": [[{"expansion": 2, "kernel": 3, "stride": 2, "width": 16, "repeats": 2}]]},
        {"activations": "static_int8"}, "tflite",
    ),
}  # fmt: skip
