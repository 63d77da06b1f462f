"""What must never ship, put into real files of every format: each fault is found, and the place is named.

A fault is found by its numbers (`verify` reads them back) or, where every number is still there under its own name, by
its answers, with the first layer that differs. Faults that belong to one format or to a whole bundle have their tests
elsewhere, in `ELSEWHERE`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from planted_coreml import coreml_float, coreml_number, coreml_padded, coreml_swapped, coreml_without_bias
from planted_gguf import gguf_bit, gguf_float, gguf_swapped, gguf_transposed, gguf_without_bias
from planted_onnx import onnx_bit, onnx_float, onnx_padded, onnx_swapped, onnx_transposed, onnx_without_bias
from planted_tflite import (
    tflite_code,
    tflite_float,
    tflite_padded,
    tflite_scale,
    tflite_swapped,
    tflite_transposed,
    tflite_without_bias,
)
from planting import KERNEL, UP, Change, flipped
from trained import as_trained

from edgedistill import catalog, quant
from edgedistill.errors import VerificationError
from edgedistill.exporters._proof import Limits, executes
from edgedistill.quant import FrozenStudent
from edgedistill.specs import QuantScheme
from edgedistill.students import part

TESTS = Path(__file__).parents[1]


SIZES = {"bert": {"layers": 1, "width": 32, "heads": 2, "ffn": 64, "vocabulary": 70, "classes": 5}, "cnn": {}}


LENGTH = 8


ELSEWHERE = {
    "the miscompiled reshape of coremltools": "exporters/coreml/test_coreml_toolkit.py::test_the_miscompiled_reshape",
    "another tokenizer in a .gguf": "exporters/gguf/test_gguf_tokens.py::test_a_changed_tokenizer_is_found",
    # its model is a .tflite, byte for byte, which its own reader takes out
    "any number of a .litertlm": "exporters/litertlm/test_litertlm_damage.py::test_every_lie_is_one_clear_error",
    "another tokenizer in a bundle": "pipeline/test_verify.py::test_a_changed_tokenizer_file_is_found",
}


def student(family: str) -> FrozenStudent:
    """Weights as large as trained ones, so that outputs are of order 1; no bias is zero and no gain is one."""
    torch.manual_seed(0)
    plugin = catalog.load_plugin("students", family)
    config = plugin.TINY.model_copy(update=SIZES[family])
    model = as_trained(part(family, "module").build(config))
    return quant.freeze(model.eval(), family, config, QuantScheme(activations="float"), {})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[FrozenStudent, Path]]:
    folder, known = tmp_path_factory.mktemp("faults"), {}

    def make(family: str, format_name: str) -> tuple[FrozenStudent, Path]:
        if (family, format_name) not in known:
            exporter = catalog.load_plugin("exporters", format_name)
            frozen, path = student(family), folder / f"{family}{exporter.SUFFIX}"
            exporter.export(frozen, (LENGTH,), path)
            known[family, format_name] = frozen, path
        return known[family, format_name]

    return make


def found(format_name: str, frozen: FrozenStudent, path: Path) -> str:
    """What is said of a file: "numbers: …" or "answers: …"; empty if it is taken for the student."""
    exporter = catalog.load_plugin("exporters", format_name)
    try:
        exporter.verify(frozen, path)
    except VerificationError as error:
        return f"numbers: {error}"
    limits = Limits(2 * exporter.PARITY, 10 * exporter.PARITY)
    try:
        executes(
            frozen, exporter.load(path), limits, "float", explain=lambda f: exporter.first_divergence(frozen, path, f)
        )
    except VerificationError as error:
        return f"answers: {error}"
    return ""


CODES, SCALES = ("quantized_data", "data"), ("scale",)


BEHIND = r"answers: .* first differs at the input of layers\.0\.output: max abs .*, expected <= "


NO_BIAS = (
    r"layers\.0\.query\.bias|missing or unknown: blk\.0\.attn_q\.bias|answers: .* first differs at layers\.0\.query: "
)


HERE = r"answers: .* first differs at (the input of )?blocks\.[01]\.depthwise\.conv: max abs"


TRANSPOSED = rf"numbers: .* codes of ({re.escape(KERNEL)}|layers\.0\.query\.weight) are not"


FLOATS = rf"numbers: .*({re.escape(UP)}|blk\.0\.ffn_up\.weight has type 0|without its integer weight|layers_0_up)"


# fault: family, what is said, and how it gets into a file of each format
TABLE: dict[str, tuple[str, str, dict[str, Change]]] = {
    "one code": (
        "bert",
        rf"numbers: .* 1 of \d+ codes of {re.escape(UP)} ",
        {
            "tflite": tflite_code,
            "onnx": onnx_bit(f"{UP}.codes", 5),
            "coreml": coreml_number(UP, CODES, lambda _, data: flipped(data, 5)),
            "gguf": gguf_bit("blk.0.ffn_up.weight", 34 + 7),
        },
    ),
    "a scale off by one unit in the last place": (
        "bert",
        rf"numbers: .* 1 of \d+ scales of {re.escape(UP)} |numbers: .*{re.escape(UP)} has channels whose blocks",
        {
            "tflite": tflite_scale,
            "onnx": onnx_bit(f"{UP}.scales", 8),
            "coreml": coreml_number(UP, SCALES, lambda _, data: flipped(data, 4)),
            "gguf": gguf_bit("blk.0.ffn_up.weight", 34),
        },
    ),
    "two layers swapped": (
        "bert",
        rf"{BEHIND}|numbers: .* codes of layers\.0\.query\.weight",
        {"tflite": tflite_swapped, "onnx": onnx_swapped, "coreml": coreml_swapped, "gguf": gguf_swapped},
    ),
    "a transposed kernel": (
        "cnn",
        TRANSPOSED,
        {
            "tflite": tflite_transposed,
            "onnx": onnx_transposed,
            "coreml": coreml_number(
                KERNEL, CODES, lambda frozen, _: frozen.quantized[KERNEL].codes.swapaxes(2, 3).tobytes()
            ),
        },
    ),
    "a transposed matrix": ("bert", TRANSPOSED, {"gguf": gguf_transposed}),
    "a dropped bias": (
        "bert",
        NO_BIAS,
        {
            "tflite": tflite_without_bias,
            "onnx": onnx_without_bias,
            "coreml": coreml_without_bias,
            "gguf": gguf_without_bias,
        },
    ),
    "floats where int8 was promised": (
        "bert",
        FLOATS,
        {"tflite": tflite_float, "onnx": onnx_float, "coreml": coreml_float, "gguf": gguf_float},
    ),
    # llama.cpp has no convolutions
    "a wrong pad mode": ("cnn", HERE, {"tflite": tflite_padded, "onnx": onnx_padded, "coreml": coreml_padded}),
}


CASES = [(fault, format_name) for fault, (_, _, edits) in TABLE.items() for format_name in edits]


def test_every_format_meets_every_fault_that_it_can_have() -> None:
    for fault in TABLE:
        pair = ("a transposed kernel", "a transposed matrix")
        formats = {name for f, name in CASES if f == fault or {f, fault} == set(pair)}
        convolutions = {"gguf"} if fault == "a wrong pad mode" else set()
        assert formats | convolutions == set(catalog.plugins("exporters")) - {"litertlm"}, fault
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        assert f"def {name}" in (TESTS / file).read_text(), place


@pytest.mark.parametrize(("fault", "format_name"), CASES)
def test_a_fault_in_a_file_is_found_and_its_place_named(
    made: Any, tmp_path: Path, fault: str, format_name: str
) -> None:
    family, told, edits = TABLE[fault]
    frozen, sound = made(family, format_name)
    path = tmp_path / sound.name
    shutil.copytree(sound, path) if sound.is_dir() else shutil.copy(sound, path)
    assert found(format_name, frozen, path) == ""
    edits[format_name](frozen, path)
    assert re.search(told, found(format_name, frozen, path)), found(format_name, frozen, path)
