"""What an inference costs, told from a config, against the network itself: a counter of operations, and hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgedistill.errors import SpecError
from edgedistill.plan import cost
from edgedistill.predict import predict
from edgedistill.specs import PerGroup, QuantScheme, WeightGrid
from edgedistill.students import bert, cnn, llama, part, vit

LENGTH = 12
DECODER = {"width": 48, "heads": 4, "kv_heads": 2, "head_width": 16, "ffn": 80, "vocabulary": 96, "max_length": 16}
NETWORKS = {
    "bert": (bert, bert.Config(layers=2, width=24, heads=3, ffn=40, vocabulary=90, max_length=16, classes=5)),
    "cnn": (cnn, cnn.TINY),
    "cnn of an odd side": (cnn, cnn.TINY.model_copy(update={"image_size": 25})),
    "vit": (vit, vit.Config(image_size=24, patch=8, layers=2, width=24, heads=3, ffn=40, classes=5)),
    "llama": (llama, llama.TINY),
    "qwen3": (llama, llama.Config(layers=2, architecture="qwen3", tied=False, **DECODER)),
    "gemma3": (llama, llama.Config(layers=2, architecture="gemma3", window=4, global_every=2, **DECODER)),
}


def name_of(family: Any) -> str:
    return str(family.__name__.rpartition(".")[2])


class Seen:
    """What the layers of a network read and wrote: convolutions, linear layers and norms."""

    def __init__(self, model: nn.Module) -> None:
        self.read, self.written, self.peak, self.layers = 0, 0, 0, 0
        self.depthwise_macs = self.depthwise = self.convolutions = 0
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) or type(module).__name__.endswith("Norm"):
                module.register_forward_hook(self._saw)

    def _saw(self, module: nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        into = given[0].numel()
        if isinstance(module, nn.Conv2d):
            self.convolutions += 1
            into -= _padding(given[0], module)
            if module.groups > 1:
                self.depthwise += 1
                self.depthwise_macs += module.weight.numel() * out.shape[2] * out.shape[3]
        self.read, self.written, self.layers = self.read + into, self.written + out.numel(), self.layers + 1
        self.peak = max(self.peak, into + out.numel())


def _padding(given: torch.Tensor, module: nn.Conv2d) -> int:
    """Zeros that a pad of its own added before the convolution: no numbers of the network."""
    side = given.shape[2]
    padded = module.padding == (0, 0) and module.kernel_size != (1, 1)
    if not padded:
        return 0
    (kernel, _), (stride, _) = module.kernel_size, module.stride
    real = next(n for n in range(side, 0, -1) if sum(cnn.same_padding(n, kernel, stride)) + n == side)
    return int(given.shape[1] * (side**2 - real**2))


@pytest.mark.parametrize("case", NETWORKS)
def test_macs_and_activations_are_those_of_the_network(case: str) -> None:
    family, config = NETWORKS[case]
    model = part(name_of(family), "module").build(config).eval()
    signature = family.signatures(config, [LENGTH])[0]
    inputs = [torch.ones(port.shape, dtype=getattr(torch, port.dtype)) for port in signature.inputs]
    seen, counter = Seen(model), FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(*inputs)
    found = family.cost(config, LENGTH)
    assert found.macs == counter.get_total_flops() // 2
    assert (found.layers, found.convolutions, found.depthwise_layers) == (
        seen.layers,
        seen.convolutions,
        seen.depthwise,
    )
    assert found.depthwise_macs == seen.depthwise_macs
    assert found.written_elements == seen.written
    assert found.read_elements == seen.read
    assert found.peak_elements == seen.peak


@pytest.mark.parametrize("case", ["llama", "qwen3", "gemma3"])
def test_a_decoders_step_and_its_cache(case: str) -> None:
    family, config = NETWORKS[case]
    model, slots = part("llama", "module").build(config).eval(), 10
    caches = model.empty_caches(1, slots)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.step(torch.ones(1, 1, dtype=torch.int64), torch.tensor([slots - 1]), caches)
    found = cost.cost(family, config, 1, slots)
    assert found.macs == counter.get_total_flops() // 2
    held = sum(tensor.numel() for cache in caches for tensor in cache)
    assert found.kv_elements * slots == held
    assert cost.traffic(family, config, QuantScheme(), 1, slots).kv_bytes == 2 * held


def test_bytes_of_weights_follow_the_scheme() -> None:
    """A text reads a row of the table for each token; every other weight once."""
    config = NETWORKS["bert"][1]
    plain = cost.traffic(bert, config, QuantScheme(activations="float"), LENGTH)
    w, f = 24, 40
    matrices, channels = 2 * (4 * w * w + 2 * w * f) + 5 * w, 2 * (5 * w + f) + 5
    floats = 4 * (2 * (4 * w + f + w + 4 * w) + 2 * w + 5 + LENGTH * w)
    assert plain.weight_bytes == matrices + 2 * channels + LENGTH * (w + 2) + floats
    half = QuantScheme(weights=WeightGrid(bits=4), activations="float")
    assert plain.weight_bytes - cost.traffic(bert, config, half, LENGTH).weight_bytes == (matrices - 5 * w) // 2
    wide = NETWORKS["gemma3"][1].model_copy(update={"width": 64, "ffn": 128, "head_width": 16})
    groups = QuantScheme(weights=WeightGrid(bits=4, granularity=PerGroup()))
    more = cost.traffic(llama, wide, groups, 1).weight_bytes
    per_channel = cost.traffic(llama, wide, QuantScheme(weights=WeightGrid(bits=4)), 1).weight_bytes
    linears = sum(t.shape[0] * (t.shape[1] // 32 - 1) for t in llama.tensors(wide) if t.kind == "linear")
    assert more - per_channel == 2 * linears


def test_a_tied_table_is_read_whole_and_one_of_its_own_by_rows() -> None:
    """As the head, a table makes every logit."""
    tied = llama.TINY
    apart = tied.model_copy(update={"tied": False})
    whole = tied.vocabulary * (tied.width + 2)
    read = [cost.traffic(llama, config, QuantScheme(), 3).weight_bytes for config in (tied, apart)]
    assert read[1] - read[0] == 3 * (tied.width + 2)
    coded = [tensor for tensor in llama.tensors(tied) if tensor.kind == "linear"]
    norms = (2 * tied.layers + 1) * tied.width * 4
    assert read[0] == whole + norms + sum(rows * (columns + 2) for _, (rows, columns), *_ in coded)


def test_static_activations_are_a_quarter_of_float_ones() -> None:
    config = NETWORKS["vit"][1]
    floats = cost.traffic(vit, config, QuantScheme(activations="float"), 1)
    static = cost.traffic(vit, config, QuantScheme(activations="static_int8"), 1)
    assert floats.activation_bytes == 4 * static.activation_bytes
    assert floats.peak_activation_bytes == 4 * static.peak_activation_bytes


@pytest.mark.parametrize("case", ["bert", "cnn", "vit"])
def test_a_workload_can_be_predicted(case: str) -> None:
    family, config = NETWORKS[case]
    work = cost.workload(family, config, QuantScheme(activations="static_int8"), LENGTH, file_bytes=50_000)
    assert work.transformer == (case != "cnn")
    forecast = predict("pixel8", work)
    assert 0 < forecast.low < forecast.median < forecast.high
    assert predict("pixel8", work, "peak_memory_mb").terms["file_mb"] == pytest.approx(0.05, rel=0.3)


def test_a_decoders_workload_can_be_predicted() -> None:
    family, config = NETWORKS["qwen3"]
    work = cost.llm_workload(family, config, QuantScheme(), prompt_tokens=6, generated_tokens=4, file_bytes=90_000)
    assert work.kv_bytes_per_token == 2 * 2 * 2 * 32
    assert predict("pixel8", work).median > 0


def test_impossible_lengths_are_refused() -> None:
    with pytest.raises(SpecError, match="8 tokens that see 4 positions"):
        cost.cost(llama, llama.TINY, 8, 4)
    with pytest.raises(SpecError, match="keeps no keys and values"):
        cost.cost(bert, bert.TINY, 4, 8)
