"""Decoders as .tflite, changed on purpose: each fault is found however large the rounding of the student is."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgedistill.errors import VerificationError
from edgedistill.exporters import tflite
from edgedistill.exporters._divergence import Mismatch
from edgedistill.exporters.tflite import proving, proving_texts, rehearsing, running
from edgedistill.exporters.tflite.decoding import derived_tables
from edgedistill.exporters.tflite.generating import Text
from edgedistill.exporters.tflite.pack import Packer
from edgedistill.exporters.tflite.proving import Reader, ask_calls, prove, proven
from edgedistill.exporters.tflite.proving_values import near_whole, roundings
from edgedistill.exporters.tflite.reading import names, parse, uses
from edgedistill.exporters.tflite.rehearsing import Rehearsal
from edgedistill.quant import FrozenStudent, freeze
from edgedistill.quant.activations import quantize_rows
from edgedistill.specs import QuantScheme
from edgedistill.students import llama, part

CONFIG = llama.Config(
    architecture="qwen2", layers=3, width=64, heads=4, kv_heads=2, head_width=16, ffn=128, vocabulary=96, max_length=24
)
Made = tuple[FrozenStudent, Path]
Change = Callable[[Any, Any, Path], None]
Feeds = Callable[[Text, dict[str, Any]], dict[str, Any]]


def student() -> FrozenStudent:
    """One channel of the stream is 15 times the others, as in trained decoders, so that int8 codes are coarse."""
    torch.manual_seed(0)
    model = part("llama", "module").build(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                nn.init.normal_(parameter, mean=1, std=0.2)
                parameter[7] *= 20
            else:
                nn.init.normal_(parameter, std=0.1 if parameter.dim() == 1 else 1.2 / parameter.shape[1] ** 0.5)
        for layer in model.layers:
            layer.down.weight[11] *= 15
    return freeze(model, "llama", CONFIG, QuantScheme(), {})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    frozen, path = student(), tmp_path_factory.mktemp("decoders") / "model.tflite"
    tflite.export(frozen, (8,), path)
    return frozen, path


def every_call(made: Made) -> Callable[[Reader], None]:
    caches = proving._caches(made[0], np.random.default_rng(0))
    return lambda reader: ask_calls(reader, made[0], caches)


def layers(schema: Any, model: Any, path: Path) -> list[dict[str, Any]]:
    """The operators with a weight, by its name, of each entry point."""
    stored = names(model, path)
    return [{use.name: use.operator for use in uses(schema, model, graph, stored)} for graph in model.subgraphs]


def without_bias(schema: Any, model: Any, path: Path) -> None:
    for operators in layers(schema, model, path):
        operator = operators["layers.2.value.weight"]
        operator.inputs = np.append(np.asarray(operator.inputs[:2], np.int32), np.int32(-1))


def swapped(schema: Any, model: Any, path: Path) -> None:
    for operators in layers(schema, model, path):
        first, second = (operators[f"layers.{n}.output.weight"] for n in (0, 1))
        first.inputs[1], second.inputs[1] = int(second.inputs[1]), int(first.inputs[1])


def constant(old: bytes, new: bytes) -> Change:
    def change(schema: Any, model: Any, path: Path) -> None:
        found = [buffer for buffer in model.buffers if buffer.data is not None and bytes(buffer.data) == old]
        assert found
        for buffer in found:
            buffer.data = np.frombuffer(new, np.uint8)

    return change


def of(value: float) -> bytes:
    return np.float32(value).tobytes()


def exchanged(side: str, part: str) -> Change:
    """Each entry point takes, or answers, the keys or values of layer 0 as those of layer 1."""

    def change(schema: Any, model: Any, path: Path) -> None:
        for signature in model.signatureDefs:
            by_name = {entry.name.decode(): entry for entry in getattr(signature, side)}
            first, second = by_name[f"kv_cache_{part}_0"], by_name[f"kv_cache_{part}_1"]
            first.tensorIndex, second.tensorIndex = int(second.tensorIndex), int(first.tensorIndex)

    return change


def before(
    schema: Any, model: Any, number: int, which: int, operator: int, options: str, by: np.ndarray[Any, Any]
) -> None:
    """The input `which` of the write number `number` of each entry point goes through an operator with a constant."""
    code = schema.BuiltinOperator.DYNAMIC_UPDATE_SLICE
    kind = schema.TensorType.FLOAT32 if by.dtype == np.float32 else schema.TensorType.INT32
    model.buffers.append(schema.BufferT(data=by.view(np.uint8)))
    model.operatorCodes.append(schema.OperatorCodeT(deprecatedBuiltinCode=operator, version=1, builtinCode=operator))
    for graph in model.subgraphs:
        write = [o for o in graph.operators if model.operatorCodes[o.opcodeIndex].builtinCode == code][number]
        given, old = int(write.inputs[which]), graph.tensors[write.inputs[which]]
        graph.tensors.append(schema.TensorT(by.shape, kind, len(model.buffers) - 1, b"added"))
        graph.tensors.append(schema.TensorT(old.shape, kind, 0, b"changed"))
        constant, changed = len(graph.tensors) - 2, len(graph.tensors) - 1
        write.inputs[which] = changed
        about = {"builtinOptionsType": getattr(schema.BuiltinOptions, options)}
        added = schema.OperatorT(
            len(model.operatorCodes) - 1, [given, constant], [changed], **about,
            builtinOptions=getattr(schema, f"{options}T")(),
        )  # fmt: skip
        graph.operators.insert(graph.operators.index(write), added)


def elsewhere(further: int) -> Change:
    """Keys of layer 1 are written so many slots further on."""
    return lambda schema, model, path: before(
        schema, model, 2, 2, schema.BuiltinOperator.ADD, "AddOptions", np.array([0, 0, further, 0], np.int32)
    )


def in_the_first_slot(schema: Any, model: Any, path: Path) -> None:
    """Keys of layer 1 are written there, whatever their position."""
    zeros = np.zeros(4, np.int32)
    before(schema, model, 2, 2, schema.BuiltinOperator.MUL, "MulOptions", zeros)


def larger(schema: Any, model: Any, path: Path) -> None:
    """Values of layer 1 are a millionth larger."""
    before(schema, model, 3, 1, schema.BuiltinOperator.MUL, "MulOptions", np.array([1 + 1e-6], np.float32))


def unkept(schema: Any, model: Any, path: Path) -> None:
    """Each entry point answers the keys of layer 1 as it was given them."""
    for signature, graph in zip(model.signatureDefs, model.subgraphs, strict=True):
        (given,), (answered,) = (
            [entry for entry in entries if entry.name == b"kv_cache_k_1"]
            for entries in (signature.inputs, signature.outputs)
        )
        outputs = list(graph.outputs)
        outputs[outputs.index(answered.tensorIndex)] = int(given.tensorIndex)
        graph.outputs, answered.tensorIndex = outputs, int(given.tensorIndex)


SPEEDS = derived_tables(student())[0]
FASTER = SPEEDS * np.where(np.arange(len(SPEEDS)) == 1, np.float32(1.001), np.float32(1))
FAULTS = {
    "a dropped bias": (without_bias, r"layers\.2\.value: "),
    "swapped layers": (swapped, r"the input of layers\.0\.output: "),
    "another epsilon": (constant(of(1e-5), of(3e-5)), r"the input of layers\.0\.query: "),
    "a mask that lets pass": (constant(of(-1e4), of(-5)), r"the input of layers\.\d\.output: "),
    "a rotation 0.1 % too fast": (constant(SPEEDS.tobytes(), FASTER.tobytes()), r"the input of layers\.0\.output: "),
}
SLOT, LAYER = r"kv_cache_k_[01]: a slot that is not written came back changed", r"the input of layers\.[01]\.output: "
# what a text that is read in parts finds first
KEPT = {
    "the cache of another layer answered": (exchanged("outputs", "k"), SLOT),
    "the cache of another layer read": (exchanged("inputs", "v"), r"kv_cache_v_0: a slot that is not written"),
    "the next slot": (elsewhere(1), SLOT),
    "the slot before": (elsewhere(-1), SLOT),
    "the first slot again": (in_the_first_slot, SLOT),
    "caches not kept": (unkept, LAYER),
}


def changed(made: Made, change: Change, folder: Path) -> Path:
    schema, model = parse(made[1])
    change(schema, model, made[1])
    path = folder / "changed.tflite"
    path.write_bytes(Packer().pack(model))
    return path


def in_parts(reader: Reader) -> None:
    """A text of 15 tokens, in pieces of 8, of which the second is filled up, and then one by one."""
    reader.read(np.random.default_rng(1).integers(0, CONFIG.vocabulary, 15).tolist(), 13)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_int8_would_hide_is_found_where_it_is(made: Made, fault: str, tmp_path: Path) -> None:
    change, told = FAULTS[fault]
    path = changed(made, change, tmp_path)
    with pytest.raises(VerificationError, match=f"It first differs at {told}"):
        prove(made[0], path)


@pytest.mark.parametrize("fault", KEPT)
def test_a_cache_that_is_not_kept_is_found_by_calls_by_texts_and_by_their_layers(
    made: Made, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, told = KEPT[fault]
    path = changed(made, change, tmp_path)
    with pytest.raises(VerificationError, match=r"It first differs at (kv_cache_[kv]_[01]|the input of layers\.[01])"):
        proven(made[0], path, every_call(made))
    with pytest.raises(VerificationError, match=f"It first differs at {told}"):
        proven(made[0], path, in_parts)
    for module in (proving, proving_texts, rehearsing):  # without what is asked to the bit
        monkeypatch.setattr(module, "same_bits", lambda ours, theirs: True)
    with pytest.raises(VerificationError, match=f"read in parts .* at {LAYER}"):
        proven(made[0], path, in_parts)


def test_a_millionth_is_found_where_nothing_rounds(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = changed(made, larger, tmp_path)
    with pytest.raises(VerificationError, match=r"kv_cache_v_1, after the layers: not the values .* bit for bit"):
        proven(made[0], path, every_call(made))
    feeds = Text.feeds

    def wrong(self: Text, ids: list[int]) -> dict[str, Any]:
        given = feeds(self, ids)
        return given | {"kv_cache_v_1": given["kv_cache_v_1"] * np.float32(1 + 1e-6)}

    monkeypatch.setattr(Text, "feeds", wrong)
    with pytest.raises(VerificationError, match="kv_cache_v_1 is not handed on as the last call"):
        proven(*made, in_parts)


def test_the_file_itself_answers_the_bits_that_it_answers_with_its_layers_shown(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked one after the other: a bit that differs, and another question, are found."""
    run = Rehearsal.run

    def other(name: str) -> Callable[..., Any]:
        def changed(self: Rehearsal, signature: str, feeds: Any) -> Any:
            found = run(self, signature, feeds)
            if name in found:
                self.heard[-1].written[name].view(np.int32)[..., 0] ^= 1
            return found

        return changed

    for name in ("logits", "kv_cache_k_2"):
        monkeypatch.setattr(Rehearsal, "run", other(name))
        with pytest.raises(VerificationError, match=f"at {name}, which has other bits where layers are shown"):
            proven(*made, in_parts)
    monkeypatch.setattr(Rehearsal, "run", run)
    lengths = iter((13, 12))
    with pytest.raises(VerificationError, match="another call than the file was asked for"):
        proven(*made, lambda reader: reader.read(list(range(15)), next(lengths)))


def test_one_runtime_is_loaded_at_a_time(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps copies of all weights, in float32 where activations are float."""
    loaded: list[weakref.ref[Any]] = []
    load = running.load

    def watched(*asked: Any, **more: Any) -> Any:
        assert not [one for one in loaded if one() is not None]
        found = load(*asked, **more)
        loaded.append(weakref.ref(found))
        return found

    monkeypatch.setattr(running, "load", watched)
    prove(*made)
    assert len(loaded) == 2
    assert not [one for one in loaded if one() is not None]


def moved(by: int) -> Feeds:
    return lambda state, given: {"input_pos": given["input_pos"] + by * (state.position > 0)}


def emptied(slot: int | None) -> Feeds:
    def change(state: Text, given: dict[str, Any]) -> dict[str, Any]:
        cache = given["kv_cache_v_1"].copy()
        cache[:, :, slice(None) if slot is None else slot] = 0
        return {"kv_cache_v_1": cache}

    return change


HANDED: dict[str, Feeds] = {
    "a position too far": moved(1),
    "a position too near": moved(-1),
    "from the first position again": lambda state, given: {"input_pos": given["input_pos"] - state.position},
    "caches not kept": emptied(None),
    "a slot overwritten": emptied(2),
    "the cache of another layer": lambda state, given: {"kv_cache_k_0": given["kv_cache_k_1"]},
}


@pytest.mark.parametrize("fault", HANDED)
def test_what_is_not_handed_on_between_calls_is_found(made: Made, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call alone is right."""
    feeds, told = Text.feeds, r"read in parts .* at the input of layers\.[012]\.output"
    proven(*made, in_parts)

    def wrong(self: Text, ids: list[int]) -> dict[str, Any]:
        given = feeds(self, ids)
        return given | HANDED[fault](self, given)

    monkeypatch.setattr(Text, "feeds", wrong)
    with pytest.raises(VerificationError, match=told if "position" in fault else "is not handed on as the last call"):
        proven(*made, in_parts)
    monkeypatch.setattr(proving_texts, "same_bits", lambda ours, theirs: True)
    with pytest.raises(VerificationError, match=told):
        proven(*made, in_parts)


def test_float_logits_are_held_to_the_students_in_float64_from_end_to_end() -> None:
    """At 5e-6 for the median token and 1e-5 for the worst, or at twice what float32 takes the student itself."""
    exact = torch.randn(9, 50, generator=torch.Generator().manual_seed(0)).double()
    largest = exact.abs().max()

    def away(by: float, tokens: int) -> torch.Tensor:
        moved = exact.clone()
        moved[:tokens] += by * largest
        return moved

    def fine(theirs: torch.Tensor, *own: torch.Tensor) -> bool:
        try:
            found = near_whole(exact, theirs, lambda: own)
        except Mismatch:
            return False
        assert torch.equal(found.logits, exact[-len(theirs) :])
        return True

    near = away(1e-6, 9)
    assert fine(away(4.9e-6, 9), near)
    assert fine(away(9.9e-6, 4), near)
    assert not fine(away(5.1e-6, 9), near)
    assert not fine(away(1.1e-5, 1), near)
    assert not fine(away(float("nan"), 1), near)
    assert fine(away(1.1e-5, 1), near, away(6e-6, 1))
    assert not fine(away(1.3e-5, 1), near, away(6e-6, 1))
    assert not fine(away(1.1e-5, 9)[-1:], near)  # of the last tokens
    assert not fine(exact[:1], near)


def test_roundings_of_a_student_differ_and_leave_it_as_it_was() -> None:
    frozen = student()
    module, ids = frozen.to_module("float"), torch.arange(12)[None]
    with torch.no_grad():
        before, exact = module(ids).logits[0], frozen.to_module("float").double()(ids).logits[0]
    drawn = list(roundings(module, ids))
    assert not any(one.requires_grad for one in drawn)
    assert torch.equal(module(ids).logits[0], before)
    errors = [float((one - exact).abs().max() / exact.abs().max()) for one in drawn]
    assert len(set(errors)) == len(errors) == 4
    assert all(1e-8 < error < 1e-5 for error in errors)


def test_a_rows_scale_is_divided_once() -> None:
    """As IEEE 754 divides: the last bit decides the codes of values between two of them."""
    x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    span = np.maximum(x.numpy().max(1), 0) - np.minimum(x.numpy().min(1), 0)
    expected = np.float32(1) / (np.float32(255) / span)
    assert np.array_equal(quantize_rows(x)[1][:, 0].numpy(), expected)
