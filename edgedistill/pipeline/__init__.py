"""build(): the stages in order. All that is slow is a stage of the store; measuring and judging are done each time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedistill.data import fingerprint, read_splits
from edgedistill.pipeline import arms, history, mixed, proofs, steps
from edgedistill.pipeline.assistants import train_assistants
from edgedistill.pipeline.known import count_pieces, resolved_fit, resolved_start
from edgedistill.pipeline.trained import References, Trained
from edgedistill.plan import make_plan
from edgedistill.specs import FitSpec, GateResult, Plan, Profile, Progress, Silent, Target
from edgedistill.store import Finished, Store, key_of
from edgedistill.teachers import Located, locate

# Raised when a stage's code changes what it writes for the same input: old results are then not taken for new ones.
REVISIONS = {
    "data": 1,
    "evidence": 1,
    "teacher": 1,
    "record": 1,
    "start": 2,
    "sensitivity": 1,
    "distil": 3,
    "freeze": 3,
    "export": 3,
    "verify": 4,
    "references": 2,
}
CONVERTER = (*steps.LIBRARIES, "litert-torch", "litert-converter", "ai-edge-litert", "ai-edge-quantizer", "torchao")
# what else shapes the bytes, or the answers, of a format's file
TOOLS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "coreml": ("coremltools",),
    "gguf": ("gguf", "llama-cpp-python"),
    "litertlm": (*CONVERTER, "litert-lm-api", "litert-lm-builder"),
}


@dataclass(frozen=True)
class BuildResult:
    """What a build left: the bundle's folder, the plan it followed and the gate's verdict."""

    folder: Path
    plan: Plan
    gate: GateResult


class _Run:
    """One build: where its stages are kept and who watches them."""

    def __init__(self, store: Store, progress: Progress) -> None:
        self.store, self.progress = store, progress

    def stage(
        self,
        label: str,
        kind: str,
        spec: dict[str, Any],
        inputs: list[Finished],
        run: Callable[[Path], None],
        libraries: tuple[str, ...] = steps.LIBRARIES,
    ) -> Finished:
        """Run a stage or find it in the store; `kind` names its revision, `label` what a person sees."""
        self.progress.begin(label)
        done = self.store.stage(
            label.replace(":", "-"), run, revision=REVISIONS[kind], spec=spec, inputs=inputs, libraries=libraries
        )
        if done.cached:
            self.progress.end("already done")
        return done


def build(
    target: Target,
    profile: Profile,
    *,
    store: Store,
    out: Path,
    base: Path,
    fleet: Sequence[Target] = (),
    baselines: bool = False,
    progress: Progress | None = None,
) -> BuildResult:
    """Plan, distil, quantize, export, verify, measure and gate; leave the bundle in `out`.

    `fleet` are further devices whose budgets must hold as well. `base` is what relative paths of the profile are
    relative to. With `baselines` the honest arms are trained too: the same student, data, augmentation and number of
    steps, without the teacher's soft answers.

    Raises:
        EdgedistillError: see `edgedistill.errors` for the tree; nothing half-written is left.
    """
    from edgedistill.pipeline import bundle, verdict  # runners and pages, which a preview of the stages does without

    watch = progress or Silent()
    run = _Run(store, watch)
    bundle.check_destination(out)
    proofs.require(tuple(dict.fromkeys(name for one in (target, *fleet) for name in one.formats)))
    began = time.monotonic()
    plan, trained, located, fit = _train(run, target, profile, base, fleet)
    seconds, profile = time.monotonic() - began, trained.profile
    labels = read_splits(trained.data.folder).labels
    frozen = _freeze(run, profile, labels, located, trained)
    exported = {name: _export(run, profile, name, frozen) for name in plan.formats}
    verified = {name: _verify(run, profile, name, frozen, exported[name], trained) for name in plan.formats}
    references = _references(run, profile, trained)
    honest = arms.train_arms(run.stage, plan, profile, trained, watch) if baselines else {}
    judged = verdict.judge(plan, verified, exported, references, trained.recorded, honest, watch)
    shipped = [trained.data, trained.teacher, trained.recorded, trained.start, *trained.stages.values(), frozen]
    shipped += [*exported.values(), *verified.values()]
    history.finished(store.root, plan, trained, located, fit, judged.qualities, seconds)
    folder = bundle.write(out, plan, plan.profile, located, fit, trained, frozen, exported, verified, judged, shipped)
    return BuildResult(folder, plan, judged.gate)


def train_student(
    target: Target, profile: Profile, *, store: Store, base: Path, progress: Progress | None = None
) -> tuple[Plan, Trained]:
    """The first half of `build`: plan and train, for those who only want to know how good a student gets."""
    plan, trained, _, _ = _train(_Run(store, progress or Silent()), target, profile, base, ())
    return plan, trained


def _train(
    run: _Run, target: Target, profile: Profile, base: Path, fleet: Sequence[Target]
) -> tuple[Plan, Trained, Located, FitSpec]:
    located = locate(profile.teacher.sources)
    data = _data(run, profile, base)
    splits = read_splits(data.folder)
    fit = resolved_fit(profile.teacher.fit, located, splits.labels)
    request = history.request_of(profile, located, fit, data.key)
    evidence = _evidence(run, profile, (target, *fleet), request, run.store.root)
    plan = make_plan(
        target,
        profile,
        fleet=fleet,
        rows=len(splits.train),
        classes=len(splits.labels),
        teacher_parameters=located.parameters,
        calibrations=history.calibrations(run.store.root, (target, *fleet)),
        builds=history.kept(evidence.folder),
        request=request,
        pieces=count_pieces(profile, located, splits.train),
    )
    return plan, train(run, plan, plan.profile, located, fit, data), located, fit


def train(run: _Run, plan: Plan, profile: Profile, located: Located, fit: FitSpec, data: Finished) -> Trained:
    """Teacher, record, start and every stage of distillation."""
    config = dict(plan.chosen.config)
    student = resolved_start(profile.student, config, located)
    seed, threads, length = profile.seed, profile.threads, profile.teacher.max_length
    watch = run.progress
    about = {"weights": located.sha256, "files": located.files_sha256, "max_length": length, "fit": fit.model_dump()}
    about |= {"seed": seed, "threads": threads}
    teacher = run.stage(
        "teacher", "teacher", about, [data],
        lambda out: steps.fit_teacher(located, fit, length, seed, threads, data.folder, out, watch),
    )  # fmt: skip
    recorded = run.stage(
        "record", "record", {"max_length": length, "threads": threads}, [data, teacher],
        lambda out: steps.record_teacher(teacher.folder, data.folder, length, threads, out, watch),
    )  # fmt: skip
    about = {"family": student.family, "config": config, "init": student.init, "vocabulary": student.vocabulary}
    start = run.stage(
        "start", "start", about | {"seed": seed, "threads": threads}, [data, teacher],
        lambda out: steps.start_student(student, config, teacher.folder, data.folder, seed, threads, out, watch),
    )  # fmt: skip
    taught, between = train_assistants(run, plan, profile, located, data, teacher, recorded)
    stages, profile, chosen = mixed.train_stages(
        lambda used, arm, done: distil_stages(run.stage, used, arm, data, taught, start, watch, done=done),
        run.stage, profile, plan.formats, start, data, watch,
    )  # fmt: skip
    floats = [stages[spec.name] for spec in profile.stages if not spec.fake_quant]
    last = stages[profile.stages[-1].name]
    parts = (data, teacher, recorded, start, floats[-1] if floats else last, last, stages)
    return Trained(*parts, profile, chosen, between)


def distil_stages(
    stage: Callable[..., Finished],
    profile: Profile,
    arm: Profile,
    data: Finished,
    recorded: Finished,
    start: Finished,
    watch: Progress,
    prefix: str = "",
    done: Mapping[str, Finished] | None = None,
) -> dict[str, Finished]:
    """Every stage of `arm` that is not `done`, each continuing from the one before; `prefix` marks the honest arms."""
    stages = dict(done or {})
    before = [start, *stages.values()][-1]
    for index, spec in enumerate(arm.stages[len(stages) :], len(stages)):
        about: dict[str, Any] = {"stage": spec.model_dump(), "scheme": profile.export.scheme.model_dump()}
        seed = key_seed(profile.seed, index)
        source = before

        def run(out: Path, spec: Any = spec, seed: int = seed, source: Finished = source) -> None:
            steps.distil_stage(spec, profile, seed, start, source, data, recorded, out, watch)

        about |= {"seed": seed, "threads": profile.threads, "family": profile.student.family}
        label = f"{prefix}distil:{spec.name}"
        before = stages[spec.name] = stage(label, "distil", about, [start, source, data, recorded], run)
    return stages


def key_seed(seed: int, index: int) -> int:
    """A seed of its own for each stage, so that two stages never draw the same numbers."""
    return int(key_of({"seed": seed, "stage": index}), 16) % 2**31


def _data(run: _Run, profile: Profile, base: Path) -> Finished:
    about = profile.data.model_dump(exclude={"train", "held_out"})
    about |= {"sources": fingerprint(profile.data, base), "seed": profile.seed}
    return run.stage(
        "data", "data", about, [],
        lambda out: steps.prepare_data(profile.data, profile.seed, base, out, run.progress), (),
    )  # fmt: skip


def _evidence(run: _Run, profile: Profile, targets: Sequence[Target], request: str, root: Path) -> Finished:
    """The finished builds that this plan learns from: those known when it was first made."""
    return run.stage(
        "evidence", "evidence", history.question_of(profile, targets, request), [],
        lambda out: history.keep(root, out), (),
    )  # fmt: skip


def _freeze(run: _Run, profile: Profile, labels: tuple[str, ...], located: Located, trained: Trained) -> Finished:
    task = {"task": profile.task, "labels": list(labels)}
    family, scheme = profile.student.family, profile.export.scheme
    return run.stage(
        "freeze", "freeze", {"scheme": scheme.model_dump(), "family": family, **task}, [trained.start, trained.last],
        lambda out: steps.freeze_student(
            family, scheme, profile.threads, task, trained.start.folder, trained.last.folder, out, run.progress
        ),
    )  # fmt: skip


def _export(run: _Run, profile: Profile, name: str, frozen: Finished) -> Finished:
    about = {"buckets": list(profile.student.buckets), "threads": profile.threads}
    return run.stage(
        f"export:{name}", "export", about, [frozen],
        lambda out: proofs.export(name, profile, frozen, out, run.progress), _tools(name),
    )  # fmt: skip


def _verify(run: _Run, profile: Profile, name: str, frozen: Finished, exported: Finished, trained: Trained) -> Finished:
    about = {"golden_samples": profile.export.golden_samples, "threads": profile.threads}
    inputs = [frozen, exported, trained.data, trained.recorded, trained.start, trained.float_student]
    return run.stage(
        f"verify:{name}", "verify", about, inputs,
        lambda out: proofs.verify(name, profile, frozen, exported, trained, out, run.progress), _tools(name),
    )  # fmt: skip


def _tools(name: str) -> tuple[str, ...]:
    return (*steps.LIBRARIES, *TOOLS[name]) if name in TOOLS else CONVERTER


def _references(run: _Run, profile: Profile, trained: Trained) -> References:
    longest = {"length": profile.student.buckets[-1], "threads": profile.threads}
    teacher = run.stage(
        "references:teacher", "references", longest, [trained.teacher, trained.data],
        lambda out: proofs.teacher_reference(profile, trained.teacher, trained.data, out, run.progress), CONVERTER,
    )  # fmt: skip
    about = {"buckets": list(profile.student.buckets), "threads": profile.threads}
    student = run.stage(
        "references:student", "references", about, [trained.start, trained.float_student, trained.data],
        lambda out: proofs.student_references(profile, trained, out, run.progress), CONVERTER,
    )  # fmt: skip
    return References(teacher, student)


__all__ = ["BuildResult", "build", "distil_stages", "train"]
