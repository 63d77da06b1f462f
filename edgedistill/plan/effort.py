"""What training a plan takes: time and memory, on this machine and on a named GPU. It never gets into a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from edgedistill.errors import SpecError, did_you_mean
from edgedistill.specs import Effort, Plan

BACKWARD = 3  # forward and backward together, in forwards: one for each of the two gradients of a product
# 10^9 multiply-accumulates a second of one thread in training, before this machine was measured: what the default build
# does on two server cores (222 s; bench/results/default_build.md). Other machines and sizes differ by the factor.
GMACS_PER_S, SPREAD = 20.0, 3.0
SPREAD_MEASURED = 1.5
LEAST_MACS = 5e11
FIXED_S = 45.0  # loading, export, verification and timing of one format (bench/results/default_build.md)
TOKENS = 0.3  # of the longest bucket: how long a batch is on average, as texts of like length share one
# torch and the converter, and bytes for each parameter; the default build peaks at 1.88 GB
BASE_MB, PER_TEACHER, PER_STUDENT = 1600.0, 12.0, 16.0
# Dense bf16 tensor TFLOP/s by the vendors' data sheets (T4: fp16). Small students are bound by starting kernels:
# STEP_S a step at least, and a twentieth of the peak beyond. Both are estimates; nothing here ran on a GPU.
GPUS = {"t4": 65.0, "l4": 121.0, "a10": 125.0, "rtx4090": 165.0, "a100": 312.0, "h100": 989.0, "h200": 989.0}
STEP_S, UTILISATION = 0.008, 0.05


class HostSpeed(NamedTuple):
    """Training speed of this machine as finished builds saw it: multiply-accumulates a second, of all threads."""

    macs_per_s: float
    builds: int


def host_speed(observed: Sequence[tuple[float, float]]) -> HostSpeed | None:
    """From the (multiply-accumulates, seconds) of finished builds; None: there is none.

    Builds of less than `LEAST_MACS` tell how long a start takes, not how fast training is, and are left out.
    """
    seen = [macs / seconds for macs, seconds in observed if macs >= LEAST_MACS and seconds > 0]
    return HostSpeed(median(seen), len(seen)) if seen else None


def training_macs(plan: Plan, rows: int, teacher_parameters: int) -> tuple[float, int]:
    """Multiply-accumulates and steps of a plan: the teacher over every row once, and each stage of each student."""
    # of a teacher's parameters the tables of tokens do not multiply; the rest does once for each token
    teacher_macs = 0.5 * teacher_parameters * plan.profile.teacher.max_length
    data, stages = plan.profile.data, plan.profile.stages
    texts = rows * (1 + data.transfer_factor)
    floats = [stage for stage in stages if not stage.fake_quant] or list(stages)
    total, steps = teacher_macs * texts * TOKENS, 0
    grown = [one.parameters / plan.chosen.parameters for one in plan.assistants]
    for share, specs in [*((share, floats) for share in grown), (1.0, list(stages))]:
        for spec in specs:
            count = max(spec.steps_min, round(spec.epochs * -(-texts // spec.batch_size)))
            steps += count
            total += count * spec.batch_size * plan.chosen.macs * share * TOKENS * BACKWARD
    return total, steps


def efforts(
    plan: Plan, rows: int, teacher_parameters: int, speed: HostSpeed | None, gpu: str = ""
) -> tuple[Effort, ...]:
    """On this machine, and on `gpu` if one is named.

    Raises:
        SpecError: for a GPU that is not in the table.
    """
    macs, steps = training_macs(plan, rows, teacher_parameters)
    threads = plan.profile.threads
    rate = speed.macs_per_s if speed else 1e9 * GMACS_PER_S * threads
    factor = SPREAD_MEASURED if speed else SPREAD
    largest = max([one.parameters for one in plan.assistants], default=plan.chosen.parameters)
    memory = BASE_MB + (PER_TEACHER * teacher_parameters + PER_STUDENT * largest) / 1e6
    fixed = FIXED_S * len(plan.formats)
    how = (
        f"as {speed.builds} finished build{'s' * (speed.builds > 1)} took here"
        if speed
        else "a stated speed; no build was finished here yet"
    )
    seconds = fixed + macs / rate
    told = f"{macs / 1e12:.2f} x 10^12 multiply-accumulates, {steps:,} steps; {how}"
    found = [
        Effort(machine=f"this machine, {threads} thread{'s' if threads > 1 else ''}", seconds=seconds,
               seconds_low=seconds / factor, seconds_high=seconds * factor, peak_memory_mb=memory, method=told)
    ]  # fmt: skip
    if gpu:
        if gpu not in GPUS:
            raise SpecError(f"--gpu {gpu!r}: not in the table{did_you_mean(gpu, GPUS)}")
        seconds = fixed + max(steps * STEP_S, 2 * macs / (GPUS[gpu] * 1e12 * UTILISATION))
        told = (
            f"{GPUS[gpu]:g} TFLOP/s by its data sheet, of which a twentieth is used; an estimate, never measured here"
        )
        found.append(
            Effort(machine=gpu, seconds=seconds, seconds_low=seconds / SPREAD, seconds_high=seconds * SPREAD,
                   peak_memory_mb=memory, method=told)
        )  # fmt: skip
    return tuple(found)
