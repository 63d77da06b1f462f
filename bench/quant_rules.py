"""How are the scales of 4-bit weights best chosen in training? absmax, mse, learned: equal steps, on validation rows.

python bench/quant_rules.py [--seeds 0 1 2] [--store FOLDER]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from _machine import write
from torch import nn

from edgedistill import catalog, pipeline, quant, record
from edgedistill.data import read_splits
from edgedistill.pipeline import steps
from edgedistill.specs import DistilSpec, PerGroup, Profile, QuantScheme, Silent, WeightGrid
from edgedistill.store import Finished, Store
from edgedistill.students import bert
from edgedistill.students.bert.module import build
from edgedistill.tasks import text_classification as task

RULES = ("absmax", "mse", "learned")
GROUPS, CHANNELS = WeightGrid(bits=4, granularity=PerGroup()), WeightGrid(bits=4)
SCHEMES = {
    "int4 per group of 32": QuantScheme(weights=GROUPS, embeddings=GROUPS, head=GROUPS, scale_dtype="bf16"),
    "int4 per channel": QuantScheme(weights=CHANNELS, embeddings=CHANNELS, head=CHANNELS),
}
FLOAT_STEPS, QUANT_STEPS = 500, 100
DEFAULT_STUDENT = bert.Config(layers=2, width=128, heads=4, ffn=512, vocabulary=3000, max_length=64, classes=77)
Row = dict[str, float | int | str]


def small(profile: Profile) -> Profile:
    """The default's data, its smallest student, few steps: minutes on one core, and 4 bits hurt such a student most."""
    data = profile.data.model_copy(update={"validation_fraction": 0.15, "transfer_factor": 0})
    student = profile.student.model_copy(update={"candidates": profile.student.candidates[-1:]})
    first, last = profile.stages
    first = first.model_copy(update={"epochs": 0.001, "steps_min": FLOAT_STEPS})
    last = last.model_copy(update={"epochs": 0.001, "steps_min": QUANT_STEPS})
    changes = {"data": data, "student": student, "stages": (first, last), "threads": 1}
    return profile.model_copy(update=changes)


class Bench:
    """One teacher, its answers and one start, shared by every run; a seed is a seed of training."""

    def __init__(self, profile: Profile, folder: Path) -> None:
        self.profile, self.folder, self.family = profile, folder, profile.student.family
        brief = tuple(stage.model_copy(update={"steps_min": 1}) for stage in profile.stages)  # only what is shared
        store, target = Store(folder / "store"), catalog.load_target("host")
        once = profile.model_copy(update={"stages": brief})
        _, self.shared = pipeline.train_student(target, once, store=store, base=Path())
        self.splits = read_splits(self.shared.data.folder)

    def stage(self, name: str, spec: DistilSpec, scheme: QuantScheme, seed: int, before: Finished) -> Finished:
        out = self.folder / name.replace(" ", "-")
        if not (out / "facts.json").exists():
            out.mkdir(parents=True, exist_ok=True)
            export = self.profile.export.model_copy(update={"scheme": scheme})
            profile, shared = self.profile.model_copy(update={"export": export}), self.shared
            steps.distil_stage(spec, profile, seed, shared.start, before, shared.data, shared.recorded, out, Silent())
        return Finished(name, name, out, cached=True)

    def logits(self, student: nn.Module) -> torch.Tensor:
        start = self.shared.start.folder
        student.config = steps.load_student(self.family, start, None)[0].config
        texts = [row.text for row in self.splits.validation]
        return torch.from_numpy(steps.logits_of(student.eval(), steps.load_tokenizer(start), texts))

    def floating(self, done: Finished) -> torch.Tensor:
        student, _, _ = steps.load_student(self.family, self.shared.start.folder, done.folder)
        return self.logits(student)

    def frozen(self, done: Finished, scheme: QuantScheme, rule: str | None = None) -> torch.Tensor:
        """Logits of the frozen student; with a rule: of a float one that is quantized without training."""
        start = self.shared.start.folder
        student, _, _ = steps.load_student(self.family, start, done.folder if rule else None)
        tensors = steps.tensors_of(self.family, student)
        quant.prepare(student, scheme, tensors, rule or quant.rule_of(steps.names_in(done.folder)))
        if rule is None:
            steps.load_weights(student, done.folder)
        return self.logits(quant.freeze(student.eval(), self.family, student.config, scheme, {}).to_module())

    def figures(self, logits: torch.Tensor, own_float: torch.Tensor) -> dict[str, float]:
        rows = self.splits.validation
        truth = torch.tensor(task.class_ids([row.label for row in rows], self.splits.labels))
        teacher = record.load(self.shared.recorded.folder).of([row.id for row in rows]).logits
        accuracy = float((logits.argmax(-1) == truth).double().mean())
        return {"accuracy": accuracy, "kl_teacher": kl(teacher, logits), "kl_float": kl(own_float, logits)}


def kl(p: torch.Tensor, q: torch.Tensor) -> float:
    """Mean KL(p || q) in nats, of logits [rows, classes]."""
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def measure(bench: Bench, seeds: list[int]) -> list[Row]:
    found: list[Row] = []
    first, last = bench.profile.stages

    def add(scheme: str, rule: str, seed: int, logits: torch.Tensor, own_float: torch.Tensor) -> None:
        found.append({"scheme": scheme, "rule": rule, "seed": seed, **bench.figures(logits, own_float)})
        print(found[-1], flush=True)

    for seed in seeds:
        before = bench.stage(f"float {seed}", first, QuantScheme(), seed, bench.shared.start)
        own = bench.floating(before)
        add("float", "before", seed, own, own)
        plain = last.model_copy(update={"fake_quant": False})
        after = bench.stage(f"control {seed}", plain, QuantScheme(), seed + 100, before)
        add("float", "trained on", seed, bench.floating(after), own)
        for label, scheme in SCHEMES.items():
            for rule in ("absmax", "mse"):
                add(label, f"{rule}, no training", seed, bench.frozen(before, scheme, rule), own)
            for rule in RULES:
                spec = last.model_copy(update={"scales": rule})
                done = bench.stage(f"{label} {rule} {seed}", spec, scheme, seed + 100, before)
                add(label, rule, seed, bench.frozen(done, scheme), own)
    return found


def step_costs(rounds: int = 40) -> dict[str, float]:
    """Milliseconds of a training step of the default student in int4 groups: the mean, with the fits it contains."""
    ids = torch.randint(0, DEFAULT_STUDENT.vocabulary, (64, 14))
    costs = {}
    for rule in RULES:
        model = build(DEFAULT_STUDENT)
        quant.prepare(model, SCHEMES["int4 per group of 32"], bert.tensors(DEFAULT_STUDENT), rule).train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
        begun = time.process_time()
        for _ in range(rounds):
            loss = nn.functional.cross_entropy(model(ids, torch.ones_like(ids)).logits, ids[:, 0] % 77)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        costs[rule] = (time.process_time() - begun) / rounds * 1e3
    return costs


def mean(found: list[Row], scheme: str, rule: str) -> float:
    return statistics.mean(float(row["kl_float"]) for row in found if (row["scheme"], row["rule"]) == (scheme, rule))


def table(found: list[Row], costs: dict[str, float], seconds: float) -> str:
    lines = [
        "# How the scales of 4-bit weights are chosen, on validation rows",
        "",
        f"BANKING77, the default's smallest student (1 layer, 64 wide) after {FLOAT_STEPS} float steps, then",
        f"{QUANT_STEPS} steps with fake quantization; everything in 4 bits. Mean over seeds, ± half their range.",
        "",
        "| scheme | scales | accuracy, % | KL(teacher, student) | KL(its float self, student) |",
        "|---|---|--:|--:|--:|",
    ]
    for scheme, rule in dict.fromkeys((str(row["scheme"]), str(row["rule"])) for row in found):
        rows = [row for row in found if (row["scheme"], row["rule"]) == (scheme, rule)]
        cells = []
        for key, factor, digits in (("accuracy", 100, 2), ("kl_teacher", 1, 4), ("kl_float", 1, 4)):
            values = [float(row[key]) * factor for row in rows]
            half = (max(values) - min(values)) / 2
            cells.append(f"{statistics.mean(values):.{digits}f} ± {half:.{digits}f}")
        lines.append(f"| {scheme} | {rule} | {' | '.join(cells)} |")
    lines.append("")
    for scheme in SCHEMES:
        untrained = mean(found, scheme, "mse, no training") / mean(found, scheme, "absmax, no training")
        learned = mean(found, scheme, "learned") / mean(found, scheme, "absmax")
        lines.append(
            f"- {scheme}, KL to its float self as a multiple of that with absmax: {untrained:.2f} with mse without "
            f"training, {learned:.2f} with learned after training."
        )
    each = ", ".join(f"{rule} {cost:.1f}" for rule, cost in costs.items())
    lines += ["", f"CPU ms for a step of the default student (2 layers, 128 wide, batch 64): {each}.", ""]
    lines += [f"The whole took {seconds:.0f} s."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    steps.deterministic(1)
    begun = time.process_time()
    bench = Bench(small(catalog.load_profile("default")), options.store or Path(tempfile.mkdtemp()))
    found = measure(bench, options.seeds)
    costs = step_costs()
    seconds = time.process_time() - begun
    figures = {"runs": found, "step_cpu_ms": costs, "cpu_seconds": seconds}
    write("quant_rules", figures, table(found, costs, seconds))
