"""Schemes that a format cannot store: refused before anything is trained, with the nearest that can be."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from edgedistill import catalog
from edgedistill.errors import SpecError
from edgedistill.plan import make_plan
from edgedistill.specs import Plan, Profile

Make = Callable[..., Profile]
PHONE = catalog.load_target("pixel8")
HOST = catalog.load_target("host")
GROUPS_4 = {"bits": 4, "granularity": {"kind": "per_group"}}
GROUPS_8 = {"bits": 8, "granularity": {"kind": "per_group"}}


def test_a_scheme_that_a_format_cannot_store_is_refused(profile: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "constants", lambda kind, name: {"HOLDS": {"activations": ("dynamic_int8",)}})
    with pytest.raises(SpecError, match=r"'tflite' cannot store exactly .*activations = 'static_int8'"):
        make_plan(PHONE, profile(export={"scheme": {"activations": "static_int8"}}))


SIZES = {"layers": 1, "width": 32, "heads": 2, "kv_heads": 1, "head_width": 16, "ffn": 64}


@pytest.mark.parametrize(
    ("formats", "student", "scheme", "told"),
    [
        (
            "tflite",
            {},
            {"embeddings": "groups", "activations": "float", "scale_dtype": "bf16"},
            r"a head that is embedding\.weight, stored as int4 per group of 32: .* computes garbage from it.* The "
            r"nearest scheme that tflite can store has embeddings = \{ bits = 4 \}\.",
        ),
        ("litertlm,onnx", {}, {"embeddings": "groups"}, r'litertlm and onnx can store has scale_dtype = "bf16"\.'),
        (
            "tflite",
            {"width": 31},
            {"weights": {"bits": 4}},
            r"layers\.0\.query\.weight as int4 per channel: it has rows of 31, which have to be a multiple of 2\. The "
            r"nearest .* has weights = \{ bits = 8 \}\.",
        ),
    ],
)
def test_a_decoder_whose_own_tensors_a_format_cannot_store_is_refused(
    profile: Make, formats: str, student: dict[str, Any], scheme: dict[str, Any], told: str
) -> None:
    """A head that is the table of embeddings is stored as that; an untied one is stored as a head."""
    scheme = {key: GROUPS_4 if value == "groups" else value for key, value in scheme.items()}

    def planned(**more: Any) -> None:
        chosen = {"family": "llama", "candidates": [{**SIZES, **student, **more}], "init": "random"}
        make_plan(PHONE.model_copy(update={"formats": tuple(formats.split(","))}),
                  profile(student=chosen, export={"scheme": scheme}))  # fmt: skip

    with pytest.raises(SpecError, match=told):
        planned()
    if not student:
        planned(tied=False)


@pytest.mark.parametrize(
    ("formats", "export", "advice"),
    [
        ("tflite", {"scheme": {"weights": GROUPS_4}}, 'tflite can store has scale_dtype = "bf16".'),
        ("tflite", {"scheme": {"weights": GROUPS_4, "activations": "float"}}, "has weights = { bits = 4 }."),
        ("tflite", {"scheme": {"weights": GROUPS_8}}, "has weights = { bits = 8 }."),
        ("gguf,tflite", {"scheme": {"activations": "static_int8"}}, 'gguf and tflite can store has activations = "dyn'),
        ("onnx,tflite", {"scheme": {"layers": {"layers.0.up.weight": GROUPS_8}}}, "layers.'layers.0.up.weight' = { b"),
        (
            "onnx,tflite",
            {"mixed": {"share": 0.7}, "scheme": {"activations": "float"}},
            "has mixed.narrow = { bits = 4 }.",
        ),
    ],
)
def test_a_refused_scheme_comes_with_the_nearest_that_all_formats_store(
    profile: Make, formats: str, export: dict[str, Any], advice: str
) -> None:
    phone = PHONE.model_copy(update={"formats": tuple(formats.split(","))})
    with pytest.raises(SpecError, match=re.escape(advice)):
        make_plan(phone, profile(export=export))


ODD = {"layers": 1, "width": 33, "heads": 3, "ffn": 64}
EVEN = ODD | {"width": 32, "heads": 2}


@pytest.mark.parametrize(
    ("formats", "sizes", "scheme", "advice", "advised"),
    [
        # groups of bf16 scales would do for another width
        (["tflite"], [ODD], {"weights": GROUPS_4}, "tflite can store has weights = { bits = 8 }.", {}),
        # and 4 bits for one of both candidates
        (
            ["tflite"],
            [EVEN, ODD],
            {"weights": GROUPS_8, "head": {"bits": 4}},
            "tflite can store has weights = { bits = 8 }, head = { bits = 8 }.",
            {},
        ),
        # for each device of the fleet alone something else would do
        (
            ["tflite", "gguf"],
            [EVEN],
            {"embeddings": GROUPS_8, "activations": "static_int8"},
            'tflite and gguf can store has embeddings = { bits = 8 }, activations = "dynamic_int8".',
            {},
        ),
    ],
)
def test_the_nearest_scheme_is_taken_when_it_is_asked_for(
    profile: Make, formats: list[str], sizes: list[Any], scheme: Any, advice: str, advised: Any
) -> None:
    """By every candidate, and by every device."""
    target, *fleet = (HOST.model_copy(update={"name": name, "formats": (name,)}) for name in formats)

    def planned(scheme: Any) -> Plan:
        student = {"candidates": sizes, "init": "random"}
        return make_plan(target, profile(student=student, export={"scheme": scheme}), fleet=fleet)

    with pytest.raises(SpecError, match=re.escape(advice)):
        planned(scheme)
    assert planned(advised).formats == tuple(formats)


def test_what_mixed_precision_may_make_narrow_has_to_be_stored_too(profile: Make) -> None:
    """Which tensors it chooses is measured after hours of training."""
    mixed = {"mixed": {"share": 0.7, "narrow": {"bits": 4}}}
    with pytest.raises(SpecError, match=r"mixed\.narrow: format 'tflite' cannot .*rows of 33, which have to be a mul"):
        make_plan(PHONE, profile(student={"candidates": [ODD], "init": "random"}, export=mixed))
    make_plan(PHONE, profile(student={"candidates": [EVEN], "init": "random"}, export=mixed))
    groups = {"mixed": {"share": 0.9}, "scheme": {"scale_dtype": "bf16"}}  # of which only the rows of 64 are made
    make_plan(PHONE, profile(student={"candidates": [ODD], "init": "random"}, export=groups))


def test_an_exception_for_a_tensor_that_is_not_there_is_refused(profile: Make) -> None:
    wrong = {"scheme": {"layers": {"layers.0.upp.weight": {"bits": 4}}}}
    with pytest.raises(SpecError, match=r"no weight 'layers\.0\.upp\.weight'; did you mean 'layers\.0\.up\.weight'"):
        make_plan(PHONE, profile(export=wrong))
