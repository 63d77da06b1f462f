"""Decoders as .tflite, changed on purpose: each fault is found however large the rounding of the student is."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_decoders import (
    CONFIG,
    FASTER,
    SPEEDS,
    Change,
    constant,
    elsewhere,
    exchanged,
    in_the_first_slot,
    larger,
    of,
    student,
    swapped,
    unkept,
    without_bias,
)

from edgedistill.errors import VerificationError
from edgedistill.exporters import tflite
from edgedistill.exporters.tflite import proving, proving_texts, rehearsing, running
from edgedistill.exporters.tflite.generating import Text
from edgedistill.exporters.tflite.pack import Packer
from edgedistill.exporters.tflite.proving import Reader, ask_calls, prove, proven
from edgedistill.exporters.tflite.reading import parse
from edgedistill.exporters.tflite.rehearsing import Rehearsal
from edgedistill.quant import FrozenStudent

Made = tuple[FrozenStudent, Path]
Feeds = Callable[[Text, dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    frozen, path = student(), tmp_path_factory.mktemp("decoders") / "model.tflite"
    tflite.export(frozen, (8,), path)
    return frozen, path


def every_call(made: Made) -> Callable[[Reader], None]:
    caches = proving._caches(made[0], np.random.default_rng(0))
    return lambda reader: ask_calls(reader, made[0], caches)


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
