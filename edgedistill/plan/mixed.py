"""Which tensors are stored with fewer bits, so that files or weights fit the size that the profile asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgedistill.errors import SpecError
from edgedistill.plan.size import largest
from edgedistill.specs import ExportSpec, QuantScheme, Spec
from edgedistill.students import StoredTensor
from edgedistill.students._allocation import allocate, sizes_of

# A file may be so much larger than predicted (tests/plan/test_size.py).
MARGIN = 0.01


def mixed_scheme(
    export: ExportSpec,
    tensors: Sequence[StoredTensor],
    formats: Sequence[str],
    buckets: Sequence[int],
    config: Spec,
    increases: Mapping[str, float] | None = None,
) -> QuantScheme:
    """The scheme with the narrow tensors as its `layers`; the scheme itself where nothing is to be mixed.

    `increases` of the KL say which tensors are narrowed first. Without them, before anything was measured, all count
    alike and the largest go first: that says how large the files will be, and not which tensors.

    Raises:
        SpecError: not even with every tensor narrow does it fit; with the least that can be had.
    """
    mixed, scheme = export.mixed, export.scheme
    if mixed is None:
        return scheme
    sizes = sizes_of(tensors, scheme, mixed.narrow)
    costs = {name: 0.0 if increases is None else increases[name] for name in sizes}
    wide, narrow = sum(large for large, _ in sizes.values()), sum(min(pair) for pair in sizes.values())

    def within(budget: float) -> QuantScheme:
        chosen = allocate(costs, sizes, max(narrow, int(budget)), scheme.weights, mixed.narrow)
        layers = {name: grid for name, grid in chosen.items() if grid == mixed.narrow}
        return scheme.model_copy(update={"layers": {**scheme.layers, **layers}})

    if mixed.share is not None:
        if narrow > mixed.share * wide:
            raise SpecError(
                f"export.mixed.share = {mixed.share:g}: with every weight that can be in {mixed.narrow.label} they "
                f"still take {narrow / wide:.3f} of their bytes. Raise it to that or more."
            )
        return within(mixed.share * wide)
    assert mixed.size_mb is not None
    limit, budget = 1e6 * mixed.size_mb / (1 + MARGIN), float(wide)
    while True:
        found = within(budget)
        over = 1e6 * largest(formats, tensors, found, buckets, config).total_mb - limit
        if over <= 0:
            return found
        if budget <= narrow:
            raise SpecError(
                f"export.mixed.size_mb = {mixed.size_mb:g}: with every weight that can be in {mixed.narrow.label} the "
                f"file takes up to {(limit + over) * (1 + MARGIN) / 1e6:.3g} MB. Raise it to that, or take a smaller "
                "student."
            )
        budget = min(budget, sum(sizes[name][found.layers.get(name) == mixed.narrow] for name in sizes)) - over


def planned_scheme(
    export: ExportSpec, tensors: Sequence[StoredTensor], formats: Sequence[str], buckets: Sequence[int], config: Spec
) -> QuantScheme:
    """`mixed_scheme` before anything was measured; with every tensor narrow where even that is too large."""
    try:
        return mixed_scheme(export, tensors, formats, buckets, config)
    except SpecError:
        assert export.mixed is not None
        narrow = sizes_of(tensors, export.scheme, export.mixed.narrow)
        layers = {**export.scheme.layers, **dict.fromkeys(narrow, export.mixed.narrow)}
        return export.scheme.model_copy(update={"layers": layers})
