"""A candidate against a baseline: launches of both in turns on one device until the gate can decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgedistill import catalog
from edgedistill.errors import SpecError, did_you_mean
from edgedistill.gate import Rule, compared, decided, joined
from edgedistill.pipeline import benching, recheck
from edgedistill.pipeline.recheck import Bundle
from edgedistill.runners import How, Job, Timing
from edgedistill.specs import Comparison, Measurement, Progress, Silent, Target

# A launch is one observation, however long it lasts: many short ones say more than few long ones.
TIMING = Timing(warmup_s=0.1, runs_min=50, time_s=0.2, energy_s=0.0)  # a race is about time alone
TEXT = Timing(warmup_runs=1, warmup_s=0.1, runs_min=3, time_s=0.3, cap_s=30.0, timeout_s=600.0, energy_s=0.0)
ON_DEVICE = Timing(warmup_s=0.5, runs_min=30, time_s=1.0, cap_s=30.0, timeout_s=180.0, energy_s=0.0)
BASELINE, CANDIDATE, AGAIN = "baseline", "candidate", "baseline again"


@dataclass(frozen=True)
class Place:
    """Where to race: `host`, `adb:SERIAL`, `ssh:USER@HOST`, with the number of threads; empty, None: the target's."""

    on: str = ""
    threads: int | None = None
    how: How = field(default_factory=How)

    def of(self, target: Target | None) -> Place:
        """What was left open filled in from a target, or without one from this machine."""
        if target is None:
            return replace(self, on=self.on or "host", threads=self.threads or 1)
        on = self.on or target.runner
        return Place(on, self.threads or target.threads, benching.of_target(self.how, on, target))

    def measure(self, jobs: Mapping[str, Job], launches: int, progress: Progress) -> dict[str, Measurement]:
        """Launch the jobs there, in turns.

        Raises:
            SpecError: no such runner.
            ForeignFile: a file is none of its format.
            StageError, MissingDependency, InfrastructureError: as the runner.
        """
        kind, _, where = self.on.partition(":")
        known = catalog.plugins("runners")
        if kind not in known:
            raise SpecError(f"--on {self.on}: no such runner{did_you_mean(kind, known)}")
        text = any(job.decode_tokens for job in jobs.values())
        with benching.telling_damage(jobs):
            found: dict[str, Measurement] = catalog.load_plugin("runners", kind).measure_many(
                jobs,
                launches=launches,
                timing=TEXT if text else TIMING if kind == "host" else ON_DEVICE,
                how=replace(self.how, where=where),
                progress=progress,
            )
        return found


def race(
    baseline: Bundle,
    candidate: Bundle,
    rule: Rule,
    *,
    place: Place,
    against_itself: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Launch both in turns, `rule.pairs_step` pairs at a time, until nothing is open or `rule.pairs_max` is reached.

    Timed is the signature of the candidate's longest texts. `against_itself` launches the baseline a second time in
    every round, to see how much the device differs from itself.

    Raises:
        VerificationError: a model is not the one that was built.
        SpecError: the two files cannot be compared: another format, or no common signature.
        StageError, InfrastructureError: as the runner.
    """
    place = place.of(candidate.target)
    old, new = _jobs(baseline, candidate, place.threads)
    return race_jobs(old, new, rule, place=place, against_itself=against_itself, progress=progress)


def race_jobs(
    baseline: Job,
    candidate: Job,
    rule: Rule,
    *,
    place: Place,
    against_itself: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """As `race`, of any two files that do the same work.

    Raises:
        SpecError: the two files cannot be compared: another format.
        StageError, InfrastructureError: as the runner.
    """
    if baseline.format != candidate.format:
        raise SpecError(
            f"{baseline.model}: is a {baseline.format or 'foreign'} file, the candidate is {candidate.format}; "
            "a race is between files of one format."
        )
    watch = progress or Silent()
    jobs = {BASELINE: baseline, CANDIDATE: candidate} | ({AGAIN: baseline} if against_itself else {})
    parts: dict[str, list[Measurement]] = {name: [] for name in jobs}
    watch.begin("race", len(jobs) * rule.pairs_max, "launch")
    while True:
        done = sum(len(part.launch_medians_ms) for part in parts[CANDIDATE])
        found = place.measure(jobs, min(rule.pairs_step, rule.pairs_max - done), watch)
        for name, seen in found.items():
            parts[name].append(seen)
        all_of = {name: joined(several) for name, several in parts.items()}
        comparison = compared(all_of[BASELINE], all_of[CANDIDATE], rule, interleaved=True, again=all_of.get(AGAIN))
        if decided(comparison, rule) or comparison.latency.pairs >= rule.pairs_max:
            watch.end(f"{comparison.latency.ratio:.3f} of the baseline's time, {comparison.latency.pairs} pairs")
            return comparison


def against_stored(
    stored: Path,
    candidate: Bundle,
    rule: Rule,
    *,
    place: Place,
    progress: Progress | None = None,
) -> Comparison:
    """Launch the candidate `rule.pairs_max` times and compare with launches that `edgedistill bench --out` stored.

    Raises:
        VerificationError: the candidate is not the file that was built.
        SpecError: the stored file is damaged, or of another device, OS build, runtime, number of threads or signature.
    """
    place = place.of(candidate.target)
    return jobs_against_stored(stored, _timed(candidate, place.threads), rule, place=place, progress=progress)


def jobs_against_stored(
    stored: Path,
    jobs: Mapping[str, Job],
    rule: Rule,
    *,
    place: Place,
    progress: Progress | None = None,
) -> Comparison:
    """As `against_stored`, of the last of a file's jobs, by signature, that was stored.

    Raises:
        SpecError: as `against_stored`.
        StageError, InfrastructureError: as the runner.
    """
    watch, known = progress or Silent(), stored_measurements(stored)
    signature = next((name for name in reversed(list(jobs)) if name in known), None)
    if signature is None:
        raise SpecError(f"{stored}: holds {', '.join(known)}; the candidate has {', '.join(jobs)}.")
    watch.begin("race", rule.pairs_max, "launch")
    found = place.measure({CANDIDATE: jobs[signature]}, rule.pairs_max, watch)
    watch.end(f"{rule.pairs_max} launches of the candidate")
    return compared(known[signature], found[CANDIDATE], rule, interleaved=False)


def stored_measurements(path: Path) -> dict[str, Measurement]:
    """The measurements by signature in a file that `edgedistill bench --out` wrote.

    Raises:
        SpecError: it cannot be read or is no such file.
    """
    if not path.is_file():
        found_there = "is a folder" if path.is_dir() else "no such file"
        raise SpecError(f"{path}: {found_there}. Give a file of `edgedistill bench --out FILE`.")
    value = recheck.read_object(path.parent, path.name)
    found = {}
    for name, item in value.items():
        if not isinstance(item, dict) or not isinstance(item.get("measurement"), dict):
            raise SpecError(f"{path}: {name!r} holds no measurement. Give a file of `edgedistill bench --out FILE`.")
        found[name] = Measurement.decode(item["measurement"], f"{path}: {name}.measurement")
    if not found:
        raise SpecError(f"{path}: holds no measurement. Give a file of `edgedistill bench --out FILE`.")
    return found


def _timed(bundle: Bundle, threads: int | None) -> dict[str, Job]:
    recheck.check_files(bundle)
    return benching.timing_jobs(bundle, threads)


def _jobs(baseline: Bundle, candidate: Bundle, threads: int | None) -> tuple[Job, Job]:
    """The longest signature of the candidate, on both files, with the candidate's threads."""
    new, old = _timed(candidate, threads), _timed(baseline, threads)
    signature, job = list(new.items())[-1]
    if signature not in old:
        raise SpecError(
            f"{baseline.folder}: has no signature {signature!r}, which the candidate is timed on; it has "
            f"{', '.join(old)}. Compare builds of one profile's buckets."
        )
    return replace(old[signature], threads=job.threads), job
