"""Static int8: which rule observes the ranges of activations best, and which grids cost a published model its answers?

python bench/static_ranges.py [--seeds 0 1 2] [--store FOLDER]

The published models of `real_models.py` are quantized without training, and compared with themselves with float
activations. A student of BANKING77 (`quant_rules.py`) is trained with each rule. The packages are those of
`real_models.py`.
"""

import argparse
import copy
import statistics
import tempfile
from pathlib import Path

import torch
from _machine import write
from _published import FAMILIES, LOADERS, Feeds, Model, load_minilm
from quant_rules import Bench, small
from torch import nn

from edgedistill import catalog, quant
from edgedistill.exporters.coreml.network import network, places
from edgedistill.quant import FrozenStudent
from edgedistill.quant.activations import Range, quantize_static
from edgedistill.quant.sensitivity import mean_kl
from edgedistill.specs import QuantScheme

RULES = ("min_max", "mse")
STATIC = QuantScheme(activations="static_int8")
Figures = dict[str, float]


@torch.no_grad()
def answers(module: nn.Module, inputs: list[Feeds]) -> torch.Tensor:
    return torch.cat([module(*(torch.from_numpy(value) for value in feeds.values())).logits for feeds in inputs])


def compared(found: torch.Tensor, wanted: torch.Tensor) -> Figures:
    away, largest = (found - wanted).abs().amax(-1), float(wanted.abs().max())
    return {
        "median": float(away.median()) / largest,
        "worst": float(away.max()) / largest,
        "agree": float((found.argmax(-1) == wanted.argmax(-1)).double().mean()),
        "kl": mean_kl(wanted, found),
    }


@torch.no_grad()
def observed(name: str, model: Model, rule: str) -> FrozenStudent:
    family, student = FAMILIES[name], copy.deepcopy(model.network)
    quant.prepare(student, STATIC, catalog.load_plugin("students", family).tensors(model.config), ranges=rule).train()
    answers(student, model.observed)
    quant.freeze_observers(student)
    return quant.freeze(student.eval(), family, model.config, STATIC, {})


def with_grids(frozen: FrozenStudent, chosen: set[str]) -> nn.Module:
    """The student with only the grids of these places, by the names of `places`."""
    model, grids = network(frozen, grids=False), places(frozen)

    def moved(x: torch.Tensor, grid: Range) -> torch.Tensor:
        return quantize_static(x, grid) * grid.scale

    for place in chosen:
        owner, _, side = place.rpartition(".")
        if owner in frozen.ranges and side == "in":
            layer = model.get_submodule(owner)
            layer.register_forward_pre_hook(lambda _, given, grid=grids[place]: (moved(given[0], grid),))
        else:
            layer = model.get_submodule(owner if owner in frozen.ranges else place)
            layer.register_forward_hook(lambda _, given, out, grid=grids[place]: moved(out, grid))
    return model


def sensitivity(frozen: FrozenStudent, inputs: list[Feeds]) -> dict[str, dict[str, Figures]]:
    """For the places of one name in all layers: the answers with these grids alone, and with all others."""
    every, wanted = set(places(frozen)), answers(network(frozen, grids=False), inputs)
    kinds: dict[str, set[str]] = {}
    for place in places(frozen):
        kinds.setdefault(".".join(part for part in place.split(".") if not part.isdigit()), set()).add(place)
    return {
        kind: {
            "alone": compared(answers(with_grids(frozen, found), inputs), wanted),
            "left out": compared(answers(with_grids(frozen, every - found), inputs), wanted),
        }
        for kind, found in {"all": every, **kinds}.items()
    }


def published() -> tuple[list[str], dict[str, object]]:
    lines, figures = [], {}
    for name in ("minilm", "efficientnet_lite0"):
        model = LOADERS[name]()
        for rule in RULES:
            frozen = observed(name, model, rule)
            wanted = answers(frozen.to_module("float"), model.compared)
            found = compared(answers(frozen.to_module(), model.compared), wanted)
            figures[f"{name}, {rule}"] = found
            lines.append(f"| {name} | {rule} | {row(found)} | {found['kl']:.4f} |")
            print(lines[-1], flush=True)
    return lines, figures


def row(found: Figures) -> str:
    return f"{found['median']:.3f} | {found['worst']:.3f} | {found['agree']:.3f}"


def places_of_minilm() -> tuple[list[str], dict[str, object]]:
    model = load_minilm()
    seen = sensitivity(observed("minilm", model, "min_max"), model.compared)
    ranked = sorted(seen, key=lambda kind: -seen[kind]["alone"]["median"])
    return [f"| {kind} | {row(seen[kind]['alone'])} | {row(seen[kind]['left out'])} |" for kind in ranked], dict(seen)


def trained(seeds: list[int], folder: Path) -> tuple[list[str], dict[str, object]]:
    profile = small(catalog.load_profile("default"))
    bench = Bench(profile, folder)
    seen: dict[str, list[Figures]] = {rule: [] for rule in RULES}
    for seed in seeds:
        first = profile.stages[0]
        before = bench.stage(f"float {seed}", first, STATIC, seed, bench.shared.start)
        for rule in RULES:
            spec = profile.stages[1].model_copy(update={"ranges": rule})
            done = bench.stage(f"{rule} {seed}", spec, STATIC, 1000 + seed, before)
            seen[rule].append(bench.figures(bench.frozen(done, STATIC), bench.floating(before)))
    lines = []
    for rule, found in seen.items():
        columns = [
            f"{statistics.mean(values):.{digits}f} ± {(max(values) - min(values)) / 2:.{digits}f}"
            for key, factor, digits in (("accuracy", 100, 2), ("kl_teacher", 1, 4), ("kl_float", 1, 4))
            for values in [[factor * one[key] for one in found]]
        ]
        lines.append(f"| {rule} | {' | '.join(columns)} |")
        print(lines[-1], flush=True)
    return lines, dict(seen)


def main(seeds: list[int], store: Path | None) -> None:
    torch.set_num_threads(1)
    rules, first = published()
    grids, second = places_of_minilm()
    with tempfile.TemporaryDirectory() as folder:
        students, third = trained(seeds, store or Path(folder))
    text = [
        "# Static int8: how ranges of activations are observed, and what each grid costs",
        "",
        "Answers to real inputs beside those of the same student with float activations: the largest difference of an",
        "answer as a share of the largest output, its median and worst; the share of the same class; mean KL in nats.",
        "",
        "## Rules, published models, without training",
        "",
        "| model | rule | median | worst | same class | KL |",
        "|---|---|--:|--:|--:|--:|",
        *rules,
        "",
        "## Rules, a student of BANKING77 trained with its ranges",
        "",
        f"1 layer, 64 wide, 500 float steps, then 100 with static int8; seeds {', '.join(map(str, seeds))}, validation",
        "rows, mean ± half the range. Its float self is that before these 100 steps.",
        "",
        "| rule | accuracy, % | KL(teacher, student) | KL(its float self, student) |",
        "|---|--:|--:|--:|",
        *students,
        "",
        "## The grids of all-MiniLM-L6-v2",
        "",
        "The places of one name in all layers, rule min_max: with these grids and no others, and with all others.",
        "",
        "| place | alone: median | worst | same class | left out: median | worst | same class |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *grids,
        "",
    ]
    write("static_ranges", {"rules": first, "grids": second, "trained": third}, "\n".join(text))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--store", type=Path)
    arguments = parser.parse_args()
    main(arguments.seeds, arguments.store)
