"""What a build saw: files, qualities, measurements, parity, verdicts and the manifest that binds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from math import exp, log, sqrt
from statistics import median
from typing import Any

from edgedistill.specs.base import Spec
from edgedistill.specs.device import Energy, Fingerprint, Launch, Outputs, Placement, Sustained
from edgedistill.specs.quant import QuantScheme

SCHEMA_VERSION = 1


class Provenance(StrEnum):
    """Where a figure comes from; a figure of one kind never stands in for another."""

    MEASURED = "measured"
    EMULATED = "emulated"
    PREDICTED = "predicted"
    COMPUTED = "computed"


class Verdict(StrEnum):
    """The outcome of one line of the gate."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    UNMEASURED = "UNMEASURED"


class Audit(Spec):
    """What a file's structure says before it meets a device: never a promise, only what may go wrong.

    `runtime_min` is the oldest runtime or system that can load it; `operators` counts them by name, in all signatures;
    `risks` are sentences about operators that may leave an accelerator, numbers that may overflow fp16, and the like.
    """

    runtime_min: str
    operators: Mapping[str, int]
    risks: tuple[str, ...] = ()


class Artifact(Spec):
    """A file, or a folder of a format that is one, and what made it; `path` is relative to the folder that holds it.

    `sha256` of a folder is that of the sorted lines `NAME  SHA256` of its files.
    """

    path: str
    format: str
    sha256: str
    size_mb: float
    scheme: QuantScheme | None = None
    audit: Audit | None = None


class Quality(Spec):
    """Accuracy on rows, with its 95% Wilson interval."""

    accuracy: float
    low: float
    high: float
    correct: int
    rows: int

    @classmethod
    def wilson(cls, correct: int, rows: int) -> Quality:
        """Accuracy of `correct` out of `rows` (> 0) with the 95 % score interval of Wilson 1927."""
        z, share = 1.959963984540054, correct / rows
        centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
        half = z * ((share * (1 - share) + z * z / (4 * rows)) / rows) ** 0.5 / (1 + z * z / rows)
        low, high = max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))  # whatever the rounding
        return cls(accuracy=share, low=low, high=high, correct=correct, rows=rows)


class Measurement(Spec):
    """What a runner saw: raw samples first, everything else derives from them.

    `launch_counts` says how many of `samples_ms`, in order, belong to each process launch. `peak_memory_mb` is the
    whole process, of which `baseline_memory_mb` was there before the file was loaded. A tool that keeps no samples
    leaves `samples_ms` empty and a `summary` in each of `launches`. `outputs` is None where a tool runs inputs of its
    own: what the file answers on that device was then not compared. None: not measured. `unfit` says why the device was
    in no state to be measured, where it was measured all the same: such figures are shown, and the gate does not count
    them.
    """

    artifact_sha256: str
    provenance: Provenance
    device: str
    runtime: str
    signature: str
    threads: int
    samples_ms: tuple[float, ...]
    launch_counts: tuple[int, ...] = ()
    launch_medians_ms: tuple[float, ...]
    first_inference_ms: float | None
    load_ms: float | None
    peak_memory_mb: float | None
    baseline_memory_mb: float | None
    context: Mapping[str, str | float]
    launches: tuple[Launch, ...] = ()
    fingerprint: Fingerprint | None = None
    tokens_per_s: Mapping[str, float] = {}
    energy: Energy | None = None
    placement: tuple[Placement, ...] = ()
    sustained: Sustained | None = None
    outputs: Outputs | None = None
    unfit: tuple[str, ...] = ()

    @property
    def samples_ns(self) -> tuple[tuple[int, ...], ...]:
        """The raw samples of each launch, in ns, exact: they are stored as ms with all their digits."""
        counts = self.launch_counts or (len(self.samples_ms),)
        starts = [sum(counts[:index]) for index in range(len(counts))]
        return tuple(
            tuple(round(value * 1e6) for value in self.samples_ms[start : start + count])
            for start, count in zip(starts, counts, strict=True)
        )

    def quantile_ms(self, q: float) -> float:
        """The q-quantile (linear interpolation between order statistics) of the raw samples, in ms.

        Without raw samples the median over launches of what the tool says, for q of 0.05, 0.5 and 0.95.

        Raises:
            ValueError: there are no samples, and the tool does not tell this quantile.
        """
        if not self.samples_ms:
            return self._summarized(q)
        ordered = sorted(self.samples_ms)
        position = q * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)

    def _summarized(self, q: float) -> float:
        name = {0.05: "p5_ms", 0.5: "p50_ms", 0.95: "p95_ms"}.get(q, "")
        found: list[float | None] = [getattr(launch.summary, name, None) for launch in self.launches]
        told = [value for value in found if value is not None]
        if not told or len(told) < len(found):
            raise ValueError(f"{self.runtime} keeps no samples and does not tell the {q:.0%} quantile")
        return median(told)

    @property
    def latency_p50_ms(self) -> float:
        """Median latency."""
        return self.quantile_ms(0.5)

    @property
    def latency_p95_ms(self) -> float:
        """95th percentile of latency."""
        return self.quantile_ms(0.95)


class Parity(Spec):
    """An artifact against the frozen student on the same real samples.

    `codes_*` come from the file's own bytes; the rest from executing the file. `first_divergence` names the layer that
    first differs, where fewer answers agree than the gate asks for.
    """

    rows: int
    tensors: int
    codes_max_difference: int
    scales_max_difference: float
    logits_max_abs: float
    logits_reference_max_abs: float
    mean_kl: float
    argmax_agreement: float
    accuracy_file: float
    accuracy_reference: float
    first_divergence: str = ""


class Rights:
    """Rows that were answered correctly, in order, as a short text: hexadecimal, the first row the highest bit."""

    @staticmethod
    def encode(rows: Sequence[bool]) -> str:
        """The text of the rows."""
        return f"{int(''.join('01'[bool(right)] for right in rows) or '0', 2):x}"

    @staticmethod
    def decode(text: str, rows: int) -> tuple[bool, ...]:
        """The rows of a text.

        Raises:
            ValueError: it is no such text, or of more rows.
        """
        bits = f"{int(text, 16):0{rows}b}"
        if len(bits) != rows:
            raise ValueError(f"holds {len(bits)} rows, {rows} were judged")
        return tuple(bit == "1" for bit in bits)


class PairedCounts(Spec):
    """Held-out rows by who answered correctly, the exported file or the teacher."""

    both: int
    only_file: int
    only_teacher: int
    neither: int

    @property
    def rows(self) -> int:
        """All rows."""
        return self.both + self.only_file + self.only_teacher + self.neither

    def retained_interval(self) -> tuple[float, float] | None:
        """95 % interval of (file's accuracy / teacher's), on the same rows; None when one of them is never right.

        The log of the ratio of two paired proportions has the variance (b + c) / ((a + b)(a + c)), a: both right,
        b and c: only one of them (Lachin, Biostatistical Methods, 2nd ed., 5.5.3).
        """
        file, teacher = self.both + self.only_file, self.both + self.only_teacher
        if not file or not teacher:
            return None
        ratio = log(file / teacher)
        spread = 1.959964 * sqrt((self.only_file + self.only_teacher) / (file * teacher))
        return exp(ratio - spread), exp(ratio + spread)


class Check(Spec):
    """One line of the gate."""

    name: str
    verdict: Verdict
    unit: str
    measured: float | None
    limit: float
    provenance: Provenance | None = None
    note: str = ""

    @property
    def relation(self) -> str:
        """`≥` when the limit is a floor (its name ends in `_min`, or it is a speed), `≤` when it is a ceiling."""
        return "≥" if self.name.endswith(("_min", "_tokens_per_s")) else "≤"


class GateResult(Spec):
    """All lines, and the verdict of the whole: the worst line counts."""

    target: str
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> Verdict:
        """FAIL before INCONCLUSIVE before UNMEASURED before PASS."""
        seen = {check.verdict for check in self.checks}
        order = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.UNMEASURED)
        return next((verdict for verdict in order if verdict in seen), Verdict.PASS)


class LedgerRow(Spec):
    """One line of the report's ledger: a model, what it is worth and what it costs. Host figures are the host's."""

    name: str
    parameters: int
    size_mb: float | None
    quality: Quality
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    peak_memory_mb: float | None = None
    runtime: str = ""
    note: str = ""


class Manifest(Spec):
    """The build's receipt. It holds nothing that differs between two identical builds: no times, no host facts.

    `parity`, `paired` and `right` are by format; the latter two are empty in bundles of the first version. `right` says
    which held-out rows a file answers correctly, as `Rights` has it.
    """

    schema_version: int = SCHEMA_VERSION
    edgedistill_version: str
    target: Mapping[str, Any]
    profile: Mapping[str, Any]
    plan: Mapping[str, Any]
    data: Mapping[str, Any]
    lineage: tuple[Mapping[str, Any], ...]
    licences: tuple[Mapping[str, str], ...]
    libraries: Mapping[str, str]
    artifacts: tuple[Artifact, ...]
    files: Mapping[str, str]
    teacher_quality: Quality
    float_quality: Quality
    artifact_quality: Quality
    parity: Mapping[str, Parity]
    paired: Mapping[str, PairedCounts] = {}
    right: Mapping[str, str] = {}
    sensitivity: Mapping[str, Any] = {}
