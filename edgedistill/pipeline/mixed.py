"""The stage between float and quantized training that decides, from what it measures, which tensors get fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgedistill.pipeline import proofs, steps
from edgedistill.plan.mixed import mixed_scheme
from edgedistill.specs import Profile, Progress, QuantScheme
from edgedistill.store import Finished, write_json

RESULT = "sensitivity.json"


Distil = Callable[[Profile, Profile, Mapping[str, Finished]], dict[str, Finished]]
"""The stages of an arm (the second) with the scheme of a profile (the first), those that are done already apart."""


def train_stages(
    distil: Distil,
    stage: Callable[..., Finished],
    profile: Profile,
    formats: Sequence[str],
    start: Finished,
    data: Finished,
    watch: Progress,
) -> tuple[dict[str, Finished], Profile, Finished | None]:
    """Train in float, measure and choose, train on the grids chosen; with the profile that has them."""
    first = [spec.fake_quant for spec in profile.stages].index(True)
    floats = distil(profile, profile.model_copy(update={"stages": profile.stages[:first]}), {})
    found = settle(stage, profile, formats, start, [start, *floats.values()][-1], data, watch)
    profile = settled(profile, found)
    return distil(profile, profile, floats), profile, found


def settle(
    stage: Callable[..., Finished],
    profile: Profile,
    formats: Sequence[str],
    start: Finished,
    before: Finished,
    data: Finished,
    watch: Progress,
) -> Finished | None:
    """Measure the student that `before` left, and choose; None where the profile says every tensor's bits itself."""
    if profile.export.mixed is None:
        return None
    about: dict[str, Any] = {"export": profile.export.model_dump(exclude={"golden_samples"}), "formats": list(formats)}
    about |= {"buckets": list(profile.student.buckets), "family": profile.student.family, "threads": profile.threads}
    return stage(
        "sensitivity", "sensitivity", about, [start, before, data],
        lambda out: measure(profile, formats, start.folder, before.folder, data.folder, out, watch),
    )  # fmt: skip


def settled(profile: Profile, found: Finished | None) -> Profile:
    """The profile with the scheme that was chosen, in which nothing is open any more."""
    if found is None:
        return profile
    scheme = QuantScheme.decode(proofs.read_json(found.file(RESULT))["scheme"], str(found.file(RESULT)))
    return profile.model_copy(update={"export": profile.export.model_copy(update={"scheme": scheme, "mixed": None})})


def measure(
    profile: Profile, formats: Sequence[str], start: Path, before: Path, data: Path, out: Path, progress: Progress
) -> None:
    """What the narrow grid costs each tensor on the validation rows, and the scheme that follows.

    Weights alone are measured: activations stay float, as ranges are only learned afterwards.
    """
    steps.deterministic(profile.threads)
    import torch

    from edgedistill.data import read_splits
    from edgedistill.quant import sensitivity

    export, family = profile.export, profile.student.family
    assert export.mixed is not None
    student, _, tokenizer = steps.load_student(family, start, before if before != start else None)
    texts = [row.text for row in read_splits(data).validation]
    tensors = steps.tensors_of(family, student)
    scheme = export.scheme.model_copy(update={"activations": "float"})
    names = sensitivity.narrowable(tensors, export.scheme, export.mixed.narrow)
    progress.begin("sensitivity", len(names) + 2, "pass")

    def logits(module: Any) -> Any:
        progress.advance(1)
        return torch.from_numpy(steps.logits_of(module, tokenizer, texts))

    found = sensitivity.measure(student.eval(), family, student.config, scheme, logits, export.mixed.narrow)
    increases = {name: found.increases[name] for name in names}
    chosen = mixed_scheme(export, tensors, formats, profile.student.buckets, student.config, increases)
    narrow = sorted(chosen.layers.keys() & names.keys())
    sizes = sensitivity.sizes_of(tensors, export.scheme, export.mixed.narrow)
    write_json(out / RESULT, {
        "rows": len(texts),
        "scheme_kl": found.scheme_kl,
        "narrow": export.mixed.narrow.label,
        "tensors": {
            name: {
                "kl_increase": increases[name],
                "bytes_wide": sizes[name][0],
                "bytes_narrow": sizes[name][1],
                "narrow": name in narrow,
            }
            for name in names
        },
        "scheme": chosen.model_dump(mode="json"),
    })  # fmt: skip
    cost = sum(increases[name] for name in narrow)
    progress.end(
        f"{len(narrow)} of {len(names)} tensors to {export.mixed.narrow.label}: KL {cost:+.2g} on {len(texts)} rows"
    )
