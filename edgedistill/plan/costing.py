"""What one student costs on every device of the fleet, in full; `sweep` does the same for many, in parts."""

from __future__ import annotations

from collections.abc import Sequence

from edgedistill.errors import SpecError
from edgedistill.plan.cost import inference, workload
from edgedistill.plan.mixed import planned_scheme
from edgedistill.plan.predict import predict
from edgedistill.plan.problem import Problem, quantile
from edgedistill.plan.quality import INT4_LOSS
from edgedistill.plan.size import largest
from edgedistill.plan.storable import misfit
from edgedistill.specs import Candidate, PerGroup, Prediction, QuantScheme, Spec
from edgedistill.students import StoredTensor


def cost(problem: Problem, config: Spec, scheme: QuantScheme) -> Candidate:
    """A student with its size, the predictions for each device, its expected quality and what it breaks."""
    buckets = problem.profile.student.buckets
    tensors: list[StoredTensor] = problem.family.tensors(config)
    parameters: int = problem.family.parameters(config)
    macs: int = problem.family.macs(config, buckets[-1])
    export = problem.profile.export.model_copy(update={"scheme": scheme})
    planned = planned_scheme(export, tensors, problem.formats, buckets, config)
    size = largest(problem.formats, tensors, planned, buckets, config)
    file_bytes = round(size.total_mb * 1e6)
    work = inference(problem.family, config, scheme, buckets, file_bytes)
    lines = [predict(one.target, work, one.calibration) for one in problem.members]
    asked = workload(problem.family, config, scheme, buckets[-1], file_bytes=file_bytes, signatures=work.signatures)
    needs = least_needs(problem, size.total_mb, lines)
    limits = problem.limits()
    teacher = problem.teacher_parameters
    return Candidate(
        config=config.model_dump(mode="json"),
        scheme=None if scheme == problem.scheme else scheme,
        parameters=parameters,
        macs=macs,
        size=size,
        work=asked.model_dump(mode="json", exclude_none=True),
        predictions=lines[0],
        others={one.target.name: found for one, found in zip(problem.members[1:], lines[1:], strict=True)},
        quality=problem.quality.expect(macs, credited(problem, config, tensors), int4_loss(tensors, scheme)),
        violations=tuple(
            f"{name}: needs at least {need:.3g}, limit {limits[name]:g}"
            for name, need in needs.items()
            if need > limits[name]
        ),
        uncertain=tuple(
            name for name, need in sure_needs(problem, lines).items() if needs[name] <= limits[name] < need
        ),
        teacher_ratio=None if teacher is None else teacher / parameters,
    )


def credited(problem: Problem, config: Spec, tensors: Sequence[StoredTensor]) -> int:
    """The parameters that are expected to serve quality: rows beyond the profile's own vocabulary are never looked up.

    What the profile says is the most pieces that its author would keep; a text has no more use for the rest.
    """
    vocabulary: int = vars(config).get("vocabulary", 0)
    unused = max(vocabulary - problem.profile.student.vocabulary, 0)
    rows = [tensor for tensor in tensors if tensor.kind in ("embedding", "head") and tensor.shape[0] == vocabulary]
    return sum(map(_numbers, tensors)) - sum(unused * _numbers(tensor) // vocabulary for tensor in rows)


def least_needs(problem: Problem, size_mb: float, lines: Sequence[Sequence[Prediction]]) -> dict[str, float]:
    """The least that each limited line needs: the size, or the low end of a prediction."""
    found = {"size_mb": size_mb} if "size_mb" in problem.limits() else {}
    return found | {name: line.low for name, line in _limited(problem, lines)}


def sure_needs(problem: Problem, lines: Sequence[Sequence[Prediction]]) -> dict[str, float]:
    """What each limited, predicted line needs with the profile's confidence."""
    return {name: quantile(line, problem.profile.confidence) for name, line in _limited(problem, lines)}


def needs_of(problem: Problem, candidate: Candidate) -> dict[str, float]:
    """`least_needs` of a candidate."""
    return least_needs(problem, candidate.size.total_mb, [candidate.predictions, *candidate.others.values()])


def _limited(problem: Problem, lines: Sequence[Sequence[Prediction]]) -> list[tuple[str, Prediction]]:
    return [
        (problem.line(n, line.quantity), line)
        for n, one in enumerate(problem.members)
        for line in lines[n]
        if line.quantity in one.limits
    ]


def predicted(candidate: Candidate, quantity: str) -> float | None:
    """The median of a predicted line on the device that needs most; None where it is not predicted."""
    found = [line.median for lines in (candidate.predictions, *candidate.others.values()) for line in lines
             if line.quantity == quantity]  # fmt: skip
    return max(found, default=None)


def int4_loss(tensors: Sequence[StoredTensor], scheme: QuantScheme) -> float:
    """Share of the teacher's accuracy that weights of 4 bits are expected to cost."""
    sizes = {tensor.name: _numbers(tensor) for tensor in tensors}
    total, lost = sum(sizes.values()), 0.0
    for tensor in tensors:
        grid = tensor.grid(scheme)
        if grid is not None and grid.bits == 4:
            lost += INT4_LOSS[isinstance(grid.granularity, PerGroup)] * sizes[tensor.name] / total
    return lost


def int4_share(tensors: Sequence[StoredTensor], scheme: QuantScheme) -> float:
    """Share of the parameters that is stored in 4 bits."""
    small = [tensor for tensor in tensors if (grid := tensor.grid(scheme)) is not None and grid.bits == 4]
    return sum(map(_numbers, small)) / sum(map(_numbers, tensors))


def _numbers(tensor: StoredTensor) -> int:
    count = 1
    for side in tensor.shape:
        count *= side
    return count


def unstorable(problem: Problem, tensors: Sequence[StoredTensor], scheme: QuantScheme) -> str | None:
    """What a format cannot store of tensors in a scheme; None: all formats can store all."""
    for name, about in problem.stores.items():
        reason = misfit(about, scheme, tensors)
        if reason is not None:
            return f"format {name!r} cannot store exactly {reason}."
    return None


def fill(problem: Problem, given: dict[str, object], where: str) -> Spec:
    """A candidate as a configuration, with vocabulary, longest bucket and classes filled in where it is silent.

    Raises:
        SpecError: if the candidate has unknown keys, wrong values, or another number of classes than the data.
    """
    student, classes = problem.profile.student, problem.classes
    if classes is not None and given.get("classes", classes) != classes:
        raise SpecError(f"{where}: classes = {given['classes']}, but the data has {classes}. Leave the key out.")
    longest, length = student.buckets[-1], given.get("max_length")
    if isinstance(length, int) and length < longest:
        raise SpecError(f"{where}: max_length = {length} is below the longest bucket, {longest}.")
    fields = problem.family.Config.model_fields
    known = {"vocabulary": student.vocabulary, "max_length": longest, "classes": classes}
    filled = {key: value for key, value in known.items() if value is not None and key in fields}
    config: Spec = problem.family.Config.decode({**filled, **given}, where=where)
    return config
