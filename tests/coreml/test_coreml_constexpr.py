"""Compressed constants in every form, against coremltools' own decoding and against numpy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coreml_models import built, convert, coremltools, quiet
from torch import nn

from edgedistill.coreml import Evaluator, load
from edgedistill.coreml.blob import unpack

RNG = np.random.default_rng(4)


SHAPE = (6, 8)


WIDTHS = (1, 2, 3, 4, 6, 8)


def codes(low: int, high: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    values = RNG.integers(low, high + 1, shape)
    values.flat[:2] = low, high
    return values


def uint(width: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    from coremltools.converters.mil.mil import types

    dtype = np.uint8 if width == 8 else types.nptype_from_builtin(getattr(types, f"uint{width}"))
    return codes(0, 2**width - 1, shape).astype(dtype)


def int4(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    from coremltools.converters.mil.mil import types

    return codes(-8, 7, shape).astype(types.np_int4_dtype)


def uint4(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    from coremltools.converters.mil.mil import types

    return codes(0, 15, shape).astype(types.np_uint4_dtype)


def uint1(array: np.ndarray) -> np.ndarray:
    from coremltools.converters.mil.mil import types

    return array.astype(types.np_uint1_dtype)


def real(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return RNG.uniform(0.05, 0.4, shape).astype(dtype)


def lut(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return RNG.uniform(-3, 3, shape).astype(dtype)


def dense(mb: Any, sparse: tuple[Any, Any]) -> Any:
    """The values of a mask and of what is compressed where it is set."""
    mask, kept = sparse
    return mb.constexpr_sparse_to_dense(mask=mask, nonzero_data=kept)


def packed(values: np.ndarray, width: int) -> np.ndarray:
    bits = (values.reshape(-1, 1) >> np.arange(width)) & 1
    return np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little")


MASK = (np.arange(48) % 3 != 1).reshape(SHAPE)


KEPT = int(MASK.sum())


Maker = Callable[[Any], Any]


OLD: dict[str, Maker] = {
    "affine": lambda mb: mb.constexpr_affine_dequantize(
        quantized_data=codes(-128, 127).astype(np.int8), zero_point=np.int8(3), scale=np.float32(0.1), axis=0
    ),
    "affine_per_column": lambda mb: mb.constexpr_affine_dequantize(
        quantized_data=codes(0, 255).astype(np.uint8),
        zero_point=codes(0, 9, (8,)).astype(np.uint8),
        scale=real(8),
        axis=1,
    ),
    "cast": lambda mb: mb.constexpr_cast(source_val=lut(*SHAPE, dtype=np.float16), output_dtype="fp32"),
    "sparse": lambda mb: mb.constexpr_sparse_to_dense(
        nonzero_data=lut(KEPT), mask=packed(MASK.astype(np.int64), 1), shape=np.array(SHAPE, np.uint32)
    ),
    **{
        f"lut_{width}_bits": lambda mb, width=width: mb.constexpr_lut_to_dense(
            indices=packed(codes(0, 2**width - 1, (5, 7)), width), lut=lut(2**width), shape=np.array((5, 7), np.uint32)
        )
        for width in (1, 2, 4, 6, 8)
    },
}


NEW: dict[str, Maker] = {
    "blocks_int4": lambda mb: mb.constexpr_blockwise_shift_scale(data=int4(), scale=real(6, 2)),
    "blocks_int4_odd": lambda mb: mb.constexpr_blockwise_shift_scale(data=int4((3, 5)), scale=real(3, 1)),
    "blocks_uint4_offset": lambda mb: mb.constexpr_blockwise_shift_scale(
        data=uint4(), scale=real(3, 4), offset=uint4((3, 4))
    ),
    "blocks_int8_negative_scale": lambda mb: mb.constexpr_blockwise_shift_scale(
        data=codes(-128, 127).astype(np.int8), scale=-real(6, 1)
    ),
    "blocks_uint8_real_offset": lambda mb: mb.constexpr_blockwise_shift_scale(
        data=codes(0, 255).astype(np.uint8), scale=real(1, 8), offset=lut(1, 8)
    ),
    "blocks_conv": lambda mb: mb.constexpr_blockwise_shift_scale(data=int4((4, 6, 3, 3)), scale=real(4, 3, 1, 1)),
    "cast": lambda mb: mb.constexpr_cast(source_val=lut(*SHAPE, dtype=np.float16), output_dtype="fp32"),
    **{
        f"lut_{width}_bits": lambda mb, width=width: mb.constexpr_lut_to_dense(
            indices=uint(width, (3, 5)), lut=lut(1, 1, 2**width, 1)
        )
        for width in WIDTHS
    },
    "lut_groups": lambda mb: mb.constexpr_lut_to_dense(indices=uint(2), lut=lut(3, 2, 4, 1)),
    "lut_vector_rows": lambda mb: mb.constexpr_lut_to_dense(indices=uint(3), lut=lut(1, 1, 8, 4), vector_axis=0),
    "lut_vector_columns_groups": lambda mb: mb.constexpr_lut_to_dense(
        indices=uint(1), lut=lut(2, 1, 2, 3), vector_axis=-1
    ),
    "lut_of_codes": lambda mb: mb.constexpr_blockwise_shift_scale(
        data=mb.constexpr_lut_to_dense(indices=uint(4), lut=codes(-128, 127, (1, 1, 16, 1)).astype(np.int8)),
        scale=real(6, 1),
    ),
    "sparse": lambda mb: mb.constexpr_sparse_to_dense(nonzero_data=lut(KEPT), mask=uint1(MASK)),
    "sparse_blocks": lambda mb: dense(
        mb,
        mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=uint1(MASK),
            nonzero_data=codes(-128, 127, (KEPT,)).astype(np.int8),
            scale=real(1, 8),
            offset=codes(-3, 3, (1, 8)).astype(np.int8),
        ),
    ),
    "sparse_lut": lambda mb: dense(
        mb,
        mb.constexpr_lut_to_sparse(
            indices_mask=uint1(MASK),
            indices_nonzero_data=uint(2, (KEPT,)),
            lut=lut(3, 1, 4, 1),
        ),
    ),
    "sparse_lut_vector": lambda mb: dense(
        mb,
        mb.constexpr_lut_to_sparse(
            indices_mask=uint1(MASK),
            indices_nonzero_data=uint(2, (KEPT,)),
            lut=lut(1, 1, 4, 2),
            vector_axis=0,
        ),
    ),
}


def materialized(value: Any) -> np.ndarray:
    """What coremltools says the constant is; of an operation on constants that are compressed themselves too."""
    found = value.op.materialized_val_inference()
    return np.asarray(found, np.float64)


@pytest.mark.parametrize(("form", "name"), [("iOS17", name) for name in OLD] + [("iOS18", name) for name in NEW])
def test_a_compressed_constant_is_what_coremltools_makes_of_it(form: str, name: str, tmp_path: Path) -> None:
    seen = []

    def make(mb: Any, inputs: dict[str, Any]) -> Any:
        value = (OLD if form == "iOS17" else NEW)[name](mb)
        seen.append(value)
        return mb.mul(x=inputs["one"], y=value)

    coremltools()
    one = {"one": np.ones(1, np.float32)}
    program = load(built(make, one, tmp_path / "constant.mlpackage", target=form))
    kinds = {operation.kind for operation in program.main.operations}
    assert any(kind.startswith("constexpr_") for kind in kinds)
    with quiet():
        wanted = closed(seen[0]) if "sparse_" in name else materialized(seen[0])
    for precision, tolerance in (("fp32", 1e-6), ("fp64", 1e-6)):
        (got,) = Evaluator(program, precision).predict(one).values()
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()
        assert np.abs(got).max() > 0


def closed(value: Any) -> np.ndarray:
    """The two-operation sparse forms in numpy; coremltools has no value for a compressed constant of another one."""
    inner = value.op.nonzero_data.op
    if inner.op_type == "constexpr_sparse_blockwise_shift_scale":
        dense = np.zeros(SHAPE)
        dense[MASK] = inner.nonzero_data.val
        return np.where(MASK, (dense - inner.offset.val) * inner.scale.val.astype(np.float64), 0)
    table, indices = inner.lut.val.astype(np.float64), np.zeros(SHAPE, int)
    indices[MASK] = inner.indices_nonzero_data.val
    if table.shape[-1] == 1:
        return np.array(
            [
                [table[row // 2, 0, indices[row, column], 0] if MASK[row, column] else 0 for column in range(8)]
                for row in range(6)
            ]
        )
    return np.array(
        [
            [table[0, 0, indices[row // 2, column], row % 2] if MASK[row // 2, column] else 0 for column in range(8)]
            for row in range(12)
        ]
    )


@pytest.mark.parametrize("width", [1, 2, 3, 4, 6])
def test_bits_are_packed_least_significant_first(width: int) -> None:
    values = np.random.default_rng(width).integers(0, 2**width, 37)
    assert np.array_equal(unpack(packed(values, width), width, 37), values)
    half = 2 ** (width - 1)
    signed = np.where(values >= half, values - 2**width, values)
    assert np.array_equal(unpack(packed(values, width), width, 37, signed=True), signed)


def test_codes_read_back_are_the_codes_written(tmp_path: Path) -> None:
    """The route the exporter takes: codes and scales as buffers that coremltools picks up from the module."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 6))
    names = {"0": (4, 1, 1, 1), "2": (6, 2)}
    written = {}
    for name, blocks in names.items():
        layer = module.get_submodule(name)
        scale = torch.rand(blocks).mul(0.1).add(0.05).half().float()
        full = scale.repeat_interleave(layer.weight.shape[1] // blocks[1], 1) if blocks[1] > 1 else scale
        grid = torch.randint(-7, 8, layer.weight.shape).float()
        layer.weight.data = grid * full
        layer.register_buffer("_COREML_/weight/compression_type", torch.tensor([3]))
        layer.register_buffer("_COREML_/weight/quantization_n_bits", torch.tensor(4))
        layer.register_buffer("_COREML_/weight/quantization_scale", scale)
        written[name] = (grid.numpy(), scale.numpy())
    module.register_buffer("_COREML_/metadata_version", torch.tensor(1))
    feeds = {"x": np.random.default_rng(1).uniform(-1, 1, (1, 3, 4, 4)).astype(np.float32)}
    program = load(convert(module, feeds, tmp_path / "w4.mlpackage", target="iOS18"))
    stored = [op for op in program.main.operations if op.kind == "constexpr_blockwise_shift_scale"]
    assert len(stored) == 2
    for operation, (grid, scale) in zip(stored, written.values(), strict=True):
        data, scales = operation.inputs["data"][0], operation.inputs["scale"][0]
        assert data.type.dtype == "int4"
        assert np.array_equal(data.array(), grid)
        assert np.array_equal(scales.array(), scale)
    with torch.no_grad():
        wanted = module(torch.from_numpy(feeds["x"])).numpy()
    (got,) = Evaluator(program, "fp32").predict(feeds).values()
    assert np.abs(got - wanted).max() < 1e-5
