"""llama.cpp watched as it computes: a sound file has no layer that differs, and a wrong one is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_students import BUCKETS, rewritten, said

from edgedistill.errors import StageError
from edgedistill.exporters import gguf
from edgedistill.exporters.gguf import probing


@pytest.mark.parametrize(("name", "scheme"), [("llama", "mixed"), ("gemma3", "int8"), ("bert", "mixed")])
def test_the_layer_with_other_codes_is_named_and_a_sound_file_has_none(made: Any, name: str, scheme: str) -> None:
    frozen, path = made(name, scheme)
    random = np.random.default_rng(0)
    feeds = [frozen.sample(signature, random) for signature in frozen.signatures(BUCKETS)]
    assert [gguf.first_divergence(frozen, path, feed) for feed in feeds] == [None] * len(feeds)
    for weight in ("layers.0.query.weight", "layers.1.down.weight", "layers.2.up.weight"):
        tensor = frozen.quantized[weight]
        codes = tensor.codes.copy()
        codes.flat[codes.size // 2 : codes.size // 2 + 8] ^= 4
        wrong = dataclasses.replace(frozen, quantized=frozen.quantized | {weight: tensor._replace(codes=codes)})
        told = [gguf.first_divergence(wrong, path, feed) for feed in feeds]
        assert any(place is not None and place.startswith(f"{weight[:-7]}: max abs ") for place in told), told


def test_a_wrong_rotation_shows_behind_the_attention(made: Any, tmp_path: Path) -> None:
    frozen, path = made("llama", "mixed")
    wrong = rewritten(path, tmp_path / "wrong.gguf", said("llama.rope.freq_base", np.float32(50.0)))
    feeds = frozen.sample(frozen.signatures(BUCKETS)[1], np.random.default_rng(0))
    told = gguf.first_divergence(frozen, wrong, feeds)
    assert told is not None
    assert told.startswith("the input of layers.0.output: max abs ")


def test_the_largest_value_and_where_it_is(made: Any) -> None:
    frozen, path = made("bert", "mixed")
    largest, where = gguf.largest_value(path, frozen.sample(frozen.signatures(BUCKETS)[0], np.random.default_rng(0)))
    assert 1 < largest < 1000
    assert where.split()[0].isupper()


def test_another_build_of_llama_cpp_is_refused_before_its_memory_is_read(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A structure with another field before the name: what would be read through it is anything."""
    import ctypes

    frozen, path = made("bert", "mixed")

    class Other(ctypes.Structure):
        pass

    Other._fields_ = [("more", ctypes.c_int64), *probing._Tensor._fields_]  # type: ignore[misc]
    monkeypatch.setattr(probing, "_Pointer", ctypes.POINTER(Other))
    with pytest.raises(StageError, match="another ggml_tensor"):
        gguf.first_divergence(frozen, path, frozen.sample(frozen.signatures(BUCKETS)[0], np.random.default_rng(0)))
