"""What a file spends on the numbers of one tensor, to the byte, by format: codes, scales, floats, and their frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import NamedTuple

from edgedistill.specs import PerGroup, QuantScheme, Spec, WeightGrid
from edgedistill.students import StoredTensor

# Core ML keeps a tensor of fewer elements in the program itself (coremltools 9.0, `should_use_weight_file`), and equal
# ones of at least as many once (`const_deduplication`).
COREML_IN_PLACE, COREML_SHARED = 10, 100
# A shorter constant is cheaper than the SLICE that would cut it from the longest bucket's (exporters/tflite/shrink.py).
TFLITE_MIN_PREFIX_BYTES = 1024
GGUF_ALIGNMENT = 32


class Numbers(NamedTuple):
    """Bytes of some tensors. `shared` are lengths of vectors of zero points, which a file holds once for each length.

    `header` is what the file says about its tensors apart from their numbers.
    """

    codes: int = 0
    scales: int = 0
    zero_points: int = 0
    floats: int = 0
    header: int = 0
    shared: frozenset[int] = frozenset()

    @property
    def bytes(self) -> int:
        """All of them but the shared ones."""
        return self.codes + self.scales + self.zero_points + self.floats + self.header


class File(NamedTuple):
    """What all tensors of a file have in common. `ios18`: a Core ML package for iOS 18 and later."""

    scheme: QuantScheme
    buckets: tuple[int, ...]
    ios18: bool = False


Rule = Callable[[StoredTensor, File], Numbers]


def scale_shape(tensor: StoredTensor, grid: WeightGrid) -> tuple[int, ...]:
    """One scale for each channel or row, or for each group of one."""
    if isinstance(grid.granularity, PerGroup):
        return tensor.shape[0], tensor.shape[1] // grid.granularity.size
    return (tensor.shape[0],)


def plain(tensor: StoredTensor, scheme: QuantScheme) -> Numbers:
    """The numbers alone, as they are computed with: packed codes, fp16 scales, float32 rest."""
    grid = tensor.grid(scheme)
    if grid is None:
        return Numbers(floats=4 * prod(tensor.shape))
    return Numbers(codes=_packed(prod(tensor.shape), grid), scales=2 * prod(scale_shape(tensor, grid)))


def tflite(tensor: StoredTensor, file: File) -> Numbers:
    """A flatbuffer: buffers start at multiples of 16, scales are float32 in vectors, or float16 buffers for groups.

    A static layer's bias has a scale for each channel. A table of positions is cut to the longest bucket.
    """
    scheme, grid = file.scheme, tflite_grid(tensor, file.scheme)
    if grid is None:
        if "position" in tensor.parts:
            return Numbers(floats=_positions(tensor, file.buckets))
        static = "bias" in tensor.parts and scheme.activations == "static_int8"
        return Numbers(floats=_buffer(4 * prod(tensor.shape)), scales=(4 + 4 * tensor.shape[0]) * static)
    codes = _buffer(_packed(prod(tensor.shape), grid))
    entry = len(tensor.name) + 6  # in the map from names to buffers: quotes, colon, comma, two digits
    shape = scale_shape(tensor, grid)
    if len(shape) == 2:
        return Numbers(codes, scales=_buffer(2 * prod(shape)), header=entry)
    return Numbers(codes, scales=4 + 4 * shape[0], header=entry, shared=frozenset(shape))


def tflite_grid(tensor: StoredTensor, scheme: QuantScheme) -> WeightGrid | None:
    """The grid that a .tflite stores a tensor with: a static kernel of more than one pixel has a byte for each code."""
    grid = tensor.grid(scheme)
    spatial = tensor.kind == "convolution" and tensor.shape[2:] != (1, 1)
    return WeightGrid() if grid is not None and spatial and scheme.activations == "static_int8" else grid


def tflite_shared(lengths: frozenset[int]) -> int:
    """Vectors of int64 zero points, one of each length."""
    return sum(8 + 8 * length for length in lengths)


def onnx(tensor: StoredTensor, file: File) -> Numbers:
    """Protobuf messages with name, sizes and raw bytes. A static layer has zero points, and int32 codes as a bias."""
    scheme, grid = file.scheme, tensor.grid(file.scheme)
    static = scheme.activations == "static_int8"
    if grid is None:
        name = f"{tensor.name}.codes" if static and "bias" in tensor.parts else tensor.name
        return Numbers(floats=_message(name, tensor.shape, 4 * prod(tensor.shape)))
    shape = scale_shape(tensor, grid)
    return Numbers(
        shared=frozenset(shape if static and tensor.kind != "embedding" else ()),
        codes=_message(f"{tensor.name}.codes", tensor.shape, _packed(prod(tensor.shape), grid)),
        scales=_message(f"{tensor.name}.scales", shape, 4 * prod(shape)),
    )


def onnx_shared(lengths: frozenset[int]) -> int:
    """Vectors of int8 zero points, one of each length."""
    return sum(_message(f"zero_points.{length}.int8", (length,), length) for length in lengths)


def onnx_names(tensor: StoredTensor) -> int:
    """How many initializers a tensor is: codes and scales are two."""
    return 1 if tensor.kind == "float" else 2


def coreml(tensor: StoredTensor, file: File) -> Numbers:
    """Blobs in the weight file: 64 bytes about each, and its data filled up to a multiple of 64.

    The iOS 17 form of a quantized tensor has int8 zero points. Of a table of positions a package of one length holds
    the rows that it reads.
    """
    grid = tensor.grid(file.scheme)
    if grid is None:
        fixed = "position" in tensor.parts and len(file.buckets) == 1
        rows = min(tensor.shape[0], *file.buckets) if fixed else tensor.shape[0]
        return Numbers(floats=_blob(rows * prod(tensor.shape[1:]), 2))
    shape = scale_shape(tensor, grid)
    codes, scales = _blob_bytes(_packed(prod(tensor.shape), grid)), _blob(prod(shape), 2)
    if file.ios18:
        return Numbers(codes, scales)
    count = shape[0]
    if count >= COREML_SHARED:
        return Numbers(codes, scales, shared=frozenset(shape))
    return Numbers(codes, scales, zero_points=_blob(count, 1))


def coreml_shared(lengths: frozenset[int]) -> int:
    """Blobs of int8 zero points, one of each length."""
    return sum(_blob(length, 1) for length in lengths)


def needs_ios18(scheme: QuantScheme, config: Spec) -> bool:
    """iOS 17 has int8 per channel only, and no states for a decoder; everything else came with iOS 18.

    A grid for embeddings says nothing of a student that has none.
    """
    sizes = vars(config)
    used = [scheme.weights, scheme.head, *scheme.layers.values(), *[scheme.embeddings] * ("vocabulary" in sizes)]
    return "kv_heads" in sizes or any(grid.label != "int8 per channel" for grid in used)


def gguf(tensor: StoredTensor, file: File) -> Numbers:
    """Blocks of 32 codes and an fp16 scale, data aligned to 32 bytes, and an entry in the header.

    An entry: a name with its length, the number of sizes, the sizes, a type and an offset.
    """
    entry = 8 + len(tensor.name) + 4 + 8 * len(tensor.shape) + 4 + 8
    grid, count = tensor.grid(file.scheme), prod(tensor.shape)
    if grid is None:
        return Numbers(floats=_up(4 * count, GGUF_ALIGNMENT), header=entry)
    blocks = count // 32
    if "bert" in tensor.parts:  # llama.cpp wants a table of token types, which is zero
        entry += 8 + len("token_types.weight") + 4 + 16 + 4 + 8
        zeros = _up(4 * tensor.shape[1], GGUF_ALIGNMENT)
    else:
        zeros = 0
    return Numbers(floats=zeros, codes=_up(blocks * grid.bits * 4 + 2 * blocks, GGUF_ALIGNMENT), header=entry)


RULES: Mapping[str, Rule] = {"tflite": tflite, "onnx": onnx, "coreml": coreml, "gguf": gguf}


def _packed(count: int, grid: WeightGrid) -> int:
    """Bytes of codes; an odd number of 4-bit ones ends in half a byte."""
    return -(-count * grid.bits // 8)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _buffer(size: int) -> int:
    """A vector's length and its table take 12 bytes, which the next buffer's alignment fills up to 16."""
    return _up(size + 12, 16)


def _positions(tensor: StoredTensor, buckets: Sequence[int]) -> int:
    """The longest bucket's rows, and those of shorter buckets that are not worth a SLICE."""
    row = 4 * tensor.shape[1]
    return sum(_buffer(row * length) for length in set(buckets) - sliced(tensor, buckets))


def sliced(tensor: StoredTensor, buckets: Sequence[int]) -> set[int]:
    """The buckets whose positions a TFLite file cuts from the longest one's."""
    return {n for n in buckets if n < max(buckets) and 4 * tensor.shape[1] * n >= TFLITE_MIN_PREFIX_BYTES}


def _varint(value: int) -> int:
    """Bytes of a number in protobuf: seven bits in each."""
    return max(1, -(-value.bit_length() // 7))


def _message(name: str, shape: Sequence[int], data: int) -> int:
    """An initializer: name, sizes, type and raw bytes, each with a tag, within a message with a tag and a length."""
    inner = sum(1 + _varint(size) for size in shape) + 2
    inner += 1 + _varint(len(name)) + len(name) + 1 + _varint(data) + data
    return 1 + _varint(inner) + inner


def _blob(count: int, size: int) -> int:
    return count * size if count < COREML_IN_PLACE else _blob_bytes(count * size)


def _blob_bytes(size: int) -> int:
    return 64 + _up(size, 64)
