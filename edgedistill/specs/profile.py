"""A build's choices: task, teacher, data, student, stages of distillation, scheme, quality floor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from edgedistill.specs.base import Spec
from edgedistill.specs.quant import PerGroup, QuantScheme, WeightGrid
from edgedistill.specs.target import Budget, Name

Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Aim = Literal["quality", "size", "latency", "battery"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TeacherSource(Spec):
    """Where a teacher's files come from; which keys are needed depends on `kind` (a file in teachers/)."""

    kind: Literal["package", "folder", "hub"]
    name: str = Field(description="package: the distribution; folder: a path; hub: an id such as 'org/model'")
    file: str = Field(default="", description="package: the weights file inside the package")
    sha256: Sha256 | None = Field(default=None, description="pinned hash of the weights file")
    revision: str = Field(default="", description="hub: the commit to take")
    licence: str = Field(default="", description="SPDX id of the weights' licence")

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


class FitSpec(Spec):
    """How the teacher is fitted to the task before it teaches.

    `auto`: `none` for a teacher that is a classifier, `head` for an encoder. `none`: it already classifies these
    labels. `head`: a linear layer on its pooled embedding (convex, L-BFGS).
    `finetune`: the head first, then every weight, AdamW with a linear warm-up and decay.
    """

    method: Literal["auto", "none", "head", "finetune"] = "auto"
    epochs: Annotated[int, Field(ge=0, le=100)] = 0
    batch_size: Count = 32
    learning_rate: Positive = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    head_l2: Annotated[float, Field(ge=0)] = 1e-5

    @model_validator(mode="after")
    def _epochs(self) -> FitSpec:
        if self.method == "finetune" and self.epochs < 1:
            raise ValueError('method = "finetune" needs epochs of 1 or more')
        return self


class TeacherSpec(Spec):
    """The teacher: the first source that is present on this machine is used, in the order given."""

    sources: Annotated[tuple[TeacherSource, ...], Field(min_length=1)]
    fit: FitSpec = FitSpec()
    max_length: Annotated[int, Field(ge=4, le=512)] = 64


class DataSpec(Spec):
    """The rows: where they are, how they are split, how the transfer set is made."""

    train: str = Field(description="'builtin:NAME' or a path to JSONL, CSV or Parquet with `text` and `label`")
    held_out: str | None = Field(default=None, description="as `train`; None: a stratified part of `train`")
    duplicates: Literal["error", "drop"] = Field(
        default="error", description="what to do with train rows whose text is held out too; drop: leave them out"
    )
    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.05
    calibration_rows: Count = 256
    transfer_factor: Annotated[int, Field(ge=0, le=20)] = Field(
        default=0, description="unlabelled texts made by augmentation, per training row; the teacher labels them"
    )


Axis = Annotated[tuple[JsonValue, ...], Field(min_length=1, max_length=64)]


class StudentSpace(Spec):
    """A space of students to search: every combination of the values of `axes`, those that are no student left out.

    An axis is a key of the family's configuration. Two more are told from others: `head_width` (heads = width /
    head_width) and `ffn_ratio` (ffn = width x ffn_ratio), for families that have heads and ffn.
    """

    axes: Annotated[Mapping[str, Axis], Field(min_length=1)]
    mixed_precision: bool = Field(
        default=False,
        description="also search students whose embeddings, and one to all of whose layers, are stored in 4 bits",
    )


class StudentSpec(Spec):
    """The family and the sizes the planner may choose from.

    `candidates` are the family's own configurations, written out; `space` is a space of them. One of both is given.
    """

    family: Name = "bert"
    init: Literal["auto", "layers", "embeddings", "random"] = Field(
        default="auto",
        description="layers: the teacher's own layers, reduced where the student is smaller; needs a BERT teacher and "
        "its size of attention head. embeddings: the teacher's word vectors, their width reduced by PCA. random: "
        "nothing. auto: layers where they can be cut from the teacher, else embeddings",
    )
    vocabulary: Annotated[int, Field(ge=100, le=200_000)] = Field(default=3000, description="most pieces to keep")
    buckets: Annotated[tuple[Count, ...], Field(min_length=1)] = (16, 32, 64)
    candidates: tuple[Mapping[str, JsonValue], ...] = ()
    space: StudentSpace | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> StudentSpec:
        if bool(self.candidates) == (self.space is not None):
            seen = "both" if self.candidates else "neither"
            raise ValueError(f"give candidates (a list of students) or space (a space to search); got {seen}")
        return self

    @model_validator(mode="after")
    def _ascending(self) -> StudentSpec:
        if list(self.buckets) != sorted(set(self.buckets)):
            raise ValueError(f"buckets must rise and not repeat, got {list(self.buckets)}")
        return self


class LossTerm(Spec):
    """One term of the objective; `params` are checked against the loss's own file."""

    loss: Name
    weight: Annotated[float, Field(ge=0)] = 1.0
    params: Mapping[str, float] = {}


class DistilSpec(Spec):
    """One stage of training. Quantization-aware distillation is a stage with `fake_quant = true`."""

    name: Name
    epochs: Annotated[float, Field(gt=0, le=10_000)]
    steps_min: Annotated[int, Field(ge=1)] = Field(default=1, description="a small data set is repeated until then")
    batch_size: Count = 64
    learning_rate: Positive
    schedule: Literal["one_cycle", "linear", "constant"] = "one_cycle"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    gradient_clip: Positive = 1.0
    mask_rate: OpenFraction = Field(default=0.0, description="share of tokens replaced by [MASK] in training")
    ema_decay: OpenFraction = Field(default=0.0, description="average of the weights kept at the end; 0: off")
    fake_quant: bool = False
    observe_fraction: Fraction = Field(default=0.8, description="fake_quant: ranges freeze after this share of steps")
    scales: Literal["absmax", "mse", "learned"] = Field(
        default="absmax",
        description="fake_quant: how the scales of weights are chosen. absmax: from the largest weight, at every step; "
        "mse: the clipped range of least squared error, found again as training goes on until ranges freeze; learned: "
        "trained with the weights (LSQ)",
    )
    ranges: Literal["min_max", "mse"] = Field(
        default="min_max",
        description="fake_quant: how the ranges of static_int8 activations are observed. min_max: all that a batch "
        "holds; mse: the clipped range of least squared error, by a histogram. Either is averaged over batches",
    )
    losses: Annotated[tuple[LossTerm, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _scales_are_of_a_grid(self) -> DistilSpec:
        if self.scales != "absmax" and not self.fake_quant:
            raise ValueError(f'scales = "{self.scales}" needs fake_quant = true')
        if self.ranges != "min_max" and not self.fake_quant:
            raise ValueError(f'ranges = "{self.ranges}" needs fake_quant = true')
        return self


class MixedSpec(Spec):
    """Fewer bits where they cost least: the least sensitive tensors are stored on `narrow`, as many as the size needs.

    How sensitive each one is, is measured on the validation rows after the float stages, before the first stage with
    fake quantization, which then trains on the very grids that were chosen.
    """

    narrow: WeightGrid = WeightGrid(bits=4, granularity=PerGroup())
    size_mb: Positive | None = Field(default=None, description="most that any of the files may take, as predicted")
    share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="most bytes of the weights, as a share of what they take without narrow ones"
    )

    @model_validator(mode="after")
    def _one_size(self) -> MixedSpec:
        if (self.size_mb is None) == (self.share is None):
            raise ValueError("give size_mb (of the file) or share (of the weights' bytes), one of the two")
        return self


class ExportSpec(Spec):
    """How the frozen student is stored."""

    scheme: QuantScheme = QuantScheme()
    mixed: MixedSpec | None = Field(default=None, description="bits of each tensor by measured sensitivity")
    golden_samples: Annotated[int, Field(ge=1, le=1000)] = 16

    @property
    def widest_use(self) -> QuantScheme:
        """The scheme with every grid that any of its tensors may get: what formats must be able to hold."""
        if self.mixed is None:
            return self.scheme
        return self.scheme.model_copy(update={"layers": {**self.scheme.layers, "mixed": self.mixed.narrow}})

    @model_validator(mode="after")
    def _narrow_goes_with_the_scheme(self) -> ExportSpec:
        QuantScheme.model_validate(self.widest_use.model_dump())
        return self


class QualityFloor(Spec):
    """What the gate asks of the exported file's quality, on the held-out rows."""

    retained_min: Fraction | None = Field(default=None, description="accuracy as a share of the teacher's")
    accuracy_min: Fraction | None = None
    argmax_agreement_min: Fraction = Field(default=0.995, description="file against frozen student")


class Profile(Spec):
    """Everything a build decides apart from the device."""

    name: Name
    task: Name = "text_classification"
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    threads: Annotated[int, Field(ge=1, le=256)] = Field(
        default=2, description="training threads; a part of the result, as sums depend on their order"
    )
    optimize_for: Aim = Field(default="quality", description="what is best among the students that meet the budget")
    confidence: Annotated[float, Field(ge=0.5, le=0.99)] = Field(
        default=0.9, description="how sure a plan wants to be of each line of the budget before it takes a student"
    )
    assistants: Annotated[int, Field(ge=0, le=3)] | Literal["auto"] = Field(
        default="auto",
        description="teacher assistants between teacher and student, trained one from the other; 0: the teacher "
        "teaches the student itself; auto: where the teacher is far larger and what was measured speaks for them",
    )
    teacher: TeacherSpec
    data: DataSpec
    student: StudentSpec
    stages: Annotated[tuple[DistilSpec, ...], Field(min_length=1)]
    export: ExportSpec = ExportSpec()
    budget: Budget = Budget()
    quality: QualityFloor = QualityFloor()

    @model_validator(mode="after")
    def _stages(self) -> Profile:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages need different names, got {names}")
        if not self.stages[-1].fake_quant:
            raise ValueError("the last stage must have fake_quant = true: what is trained is what is shipped")
        clipped = next((stage for stage in self.stages if stage.ranges != "min_max"), None)
        if clipped and self.export.scheme.activations != "static_int8":
            raise ValueError(
                f'stage {clipped.name}: ranges = "{clipped.ranges}" is for static activations, and export.scheme has '
                f'activations = "{self.export.scheme.activations}": take static_int8, or leave ranges out'
            )
        return self
