"""Which student: what each candidate costs, which budget lines it breaks, and the best of those that are left."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from edgedistill import catalog
from edgedistill.errors import SpecError
from edgedistill.plan.predict import Workload, predict
from edgedistill.plan.size import largest
from edgedistill.specs import Budget, Candidate, PerGroup, Prediction, Profile, Spec, Target
from edgedistill.students import StoredTensor

# Operators of one signature of the .tflite, counted in exported files of the bert family: 27, and 56 for each layer.
OPERATORS, OPERATORS_PER_LINEAR = 17.7, 9.33
FLOAT_BYTES = 4


def candidates(
    target: Target, profile: Profile, family: ModuleType, budget: Budget, classes: int | None, teacher: int | None
) -> tuple[Candidate, ...]:
    """Every candidate of the profile with its cost and the lines of `budget` it cannot meet, in the profile's order.

    Raises:
        SpecError: if a candidate is not a valid configuration of the family.
    """
    configs = [fill(profile, family, number, classes) for number in range(len(profile.student.candidates))]
    for number, config in enumerate(configs):
        rows_fit(target, profile, family.tensors(config), number)
    return tuple(_cost(target, profile, family, config, budget, teacher) for config in configs)


def fill(profile: Profile, family: ModuleType, number: int, classes: int | None) -> Spec:
    """Candidate `number` as a configuration, with vocabulary, longest bucket and classes filled in where it is silent.

    Raises:
        SpecError: if the candidate has unknown keys, wrong values, or another number of classes than the data.
    """
    student, given = profile.student, profile.student.candidates[number]
    where = f"profile {profile.name!r}: student.candidates[{number}]"
    if classes is not None and given.get("classes", classes) != classes:
        raise SpecError(f"{where}: classes = {given['classes']}, but the data has {classes}. Leave the key out.")
    longest = student.buckets[-1]
    if given.get("max_length", longest) < longest:
        raise SpecError(f"{where}: max_length = {given['max_length']} is below the longest bucket, {longest}.")
    known = {"vocabulary": student.vocabulary, "max_length": longest, "classes": classes}
    filled = {key: value for key, value in known.items() if value is not None and key in family.Config.model_fields}
    config: Spec = family.Config.decode({**filled, **given}, where=where)
    return config


def rows_fit(target: Target, profile: Profile, tensors: Sequence[StoredTensor], number: int) -> None:
    """Check that the rows of candidate `number`'s weights can be cut into the blocks that scheme and formats need.

    Raises:
        SpecError: naming the weight and its width.
    """
    multiples = {
        f"format {name!r}": catalog.constants("exporters", name).get("ROW_MULTIPLE", 1) for name in target.formats
    }
    for tensor in tensors:
        grid = tensor.grid(profile.export.scheme)
        if grid is None:
            continue
        groups = grid.granularity.size if isinstance(grid.granularity, PerGroup) else 1
        for what, multiple in {"its scheme": groups, **multiples}.items():
            if tensor.shape[1] % multiple:
                raise SpecError(
                    f"profile {profile.name!r}: student.candidates[{number}]: {tensor.name} has rows of "
                    f"{tensor.shape[1]}, and {what} stores blocks of {multiple}: take a multiple of {multiple}."
                )


def violations(budget: Budget, size_mb: float, predictions: Sequence[Prediction]) -> dict[str, float]:
    """The lines that cannot be met, each with the least it needs: the size, or the low end of a prediction."""
    needs = {"size_mb": size_mb, **{line.quantity: line.low for line in predictions}}
    return {name: needs[name] for name, limit in budget.limits().items() if needs.get(name, 0.0) > limit}


def needed(budget: Budget, candidate: Candidate) -> dict[str, float]:
    """`violations` of a candidate."""
    return violations(budget, candidate.size.total_mb, candidate.predictions)


def confident(budget: Budget, candidate: Candidate) -> bool:
    """True when every predicted line is met even at the high end of its interval."""
    limits = budget.limits()
    return candidate.feasible and all(p.high <= limits.get(p.quantity, p.high) for p in candidate.predictions)


def choose(profile: Profile, budget: Budget, found: Sequence[Candidate]) -> Candidate | None:
    """The best candidate for `optimize_for` among the confident ones, else among the feasible ones; None: none is.

    Parameters stand in for quality, which is known only after training. Ties go to the candidate named first.
    """
    pool = [one for one in found if confident(budget, one)] or [one for one in found if one.feasible]
    if not pool:
        return None
    if profile.optimize_for == "quality":
        return max(pool, key=lambda one: one.parameters)
    if profile.optimize_for == "size":
        return min(pool, key=lambda one: one.parameters)
    return min(pool, key=lambda one: (predicted(one, "latency_p95_ms"), one.macs))


def predicted(candidate: Candidate, quantity: str) -> float:
    """The median of a predicted line; 0 when the line is not predicted."""
    return next((line.median for line in candidate.predictions if line.quantity == quantity), 0.0)


def describe(candidate: Candidate) -> str:
    """The configuration on one line."""
    return ", ".join(f"{key}={value:g}" for key, value in candidate.config.items())


def _cost(
    target: Target, profile: Profile, family: ModuleType, config: Spec, budget: Budget, teacher: int | None
) -> Candidate:
    student, scheme = profile.student, profile.export.scheme
    tensors: list[StoredTensor] = family.tensors(config)
    parameters: int = family.parameters(config)
    macs: int = family.macs(config, student.buckets[-1])
    size = largest(target.formats, tensors, scheme, student.buckets)
    work = _workload(tensors, macs, round(size.total_mb * 1e6), student.buckets, scheme.activations)
    lines = predict(target, work)
    limits = budget.limits()
    return Candidate(
        config=config.model_dump(),
        parameters=parameters,
        macs=macs,
        size=size,
        predictions=lines,
        violations=tuple(
            f"{name}: needs at least {need:.3g}, limit {limits[name]:g}"
            for name, need in violations(budget, size.total_mb, lines).items()
        ),
        teacher_ratio=None if teacher is None else teacher / parameters,
    )


def _workload(
    tensors: Sequence[StoredTensor], macs: int, file_bytes: int, buckets: Sequence[int], activations: str
) -> Workload:
    """The work of one inference at the longest bucket.

    Activations are those of the linear layers: each reads its input, and its output is written and read again by what
    follows. Softmax and layer norm, smaller, are left to the interval.
    """
    linears = [tensor.shape for tensor in tensors if tensor.kind in ("linear", "head")]
    longest = buckets[-1]
    return Workload(
        macs=macs,
        operators=round(OPERATORS + OPERATORS_PER_LINEAR * len(linears)),
        linear_bytes=sum(rows * columns for rows, columns in linears),
        activation_bytes=sum(2 * rows + columns for rows, columns in linears) * longest * FLOAT_BYTES,
        peak_activation_bytes=max(rows + columns for rows, columns in linears) * longest * FLOAT_BYTES,
        file_bytes=file_bytes,
        signatures=len(buckets),
        activations=activations,
        # a token table means a text encoder, with the layer norms, GELU and attention that run slower than the line
        transformer=any(tensor.kind == "embedding" for tensor in tensors),
    )
