"""Look inside llama.cpp as it computes a file: the first layer that is not the student's, the largest value.

llama.cpp calls back after each operation, with its `ggml_tensor`: the result, and in it what it was computed from. The
layout of that structure is private to ggml; the one here is that of llama-cpp-python 0.3.36 (`ggml/include/ggml.h`),
and it is compared with what ggml's own functions say before anything is read through it.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgedistill.errors import StageError
from edgedistill.exporters._divergence import Call, alone, follow, weights_of
from edgedistill.exporters.gguf.blocks import SIZE
from edgedistill.exporters.gguf.parsing import F32
from edgedistill.exporters.gguf.running import open_file
from edgedistill.exporters.gguf.writing import layout_of
from edgedistill.quant.frozen import FrozenStudent

# What the kernels may differ by, of the largest value: sums in another order, and between layers a table of GELU.
_ROUNDING = 5e-3
_INT32 = 26  # enum ggml_type
_DTYPES: dict[int, Any] = {F32: np.float32, _INT32: np.int32}
_ADD, _MUL_MAT, _GET_ROWS = "ADD", "MUL_MAT", "GET_ROWS"


class _Tensor(ctypes.Structure):
    """`struct ggml_tensor`."""


_Pointer = ctypes.POINTER(_Tensor)
_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", _Pointer * 10),
    ("view_src", _Pointer),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]
Look = Callable[[str, _Tensor], None]
"""Called with the name of each operation and its result, when it is computed."""


def first_divergence(frozen: FrozenStudent, path: Path, feeds: Mapping[str, NDArray[Any]]) -> str | None:
    """Which layer of the file first differs from the student's for these inputs, and by how much; None if none does.

    llama.cpp's own rounding of what enters a layer is no difference: the student's layer is given the rounded values.

    Raises:
        VerificationError: if the file is damaged.
        MissingDependency: if llama-cpp-python is not installed.
        StageError: if llama.cpp refuses the file or the inputs, or it is another build than the one known here.
    """
    layout, plain = layout_of(frozen), frozen.build()
    by_theirs: dict[str, list[str]] = {}
    for place, weight in weights_of(frozen, plain).items():
        by_theirs.setdefault(layout.names[weight], []).append(place)
    calls: dict[str, list[Call]] = {place: [] for places in by_theirs.values() for place in places}
    pending: dict[int, tuple[str, Tensor]] = {}
    coded: set[str] = set()

    def look(kind: str, result: _Tensor) -> None:
        if kind in (_MUL_MAT, _GET_ROWS):
            weight, given = result.src[0].contents, result.src[1].contents
            for place in by_theirs.get(weight.name.decode("utf-8", "replace"), ()):
                if isinstance(plain.get_submodule(place), nn.Embedding) == (kind == _GET_ROWS):
                    calls[place].append(Call(_values(given), _values(result)))
                    if weight.type != F32:
                        coded.add(place)
                    pending[ctypes.addressof(result)] = place, calls[place][-1].given
        elif kind == _ADD:  # of a bias, to the product just before it
            before = pending.get(ctypes.addressof(result.src[0].contents))
            if before is not None and result.src[1].contents.name.decode("utf-8", "replace").endswith(".bias"):
                calls[before[0]][-1] = Call(before[1], _values(result))

    logits, ids = _watched(path, feeds, look)
    for ours, order in layout.order.items():  # their rows back in our order
        place = ours.removesuffix(".weight")
        back = torch.from_numpy(np.argsort(order))
        calls[place] = [Call(c.given, c.answered.reshape(-1, len(order))[:, back]) for c in calls[place]]

    def enters(place: str, given: Tensor) -> Tensor:
        return _as_q8_0(given) if place in coded and given.is_floating_point() else given

    ask = alone(_ROUNDING, enters)
    return follow(frozen.to_module("float"), calls, ids, ask, torch.from_numpy(logits), 2 * _ROUNDING)


def largest_value(path: Path, feeds: Mapping[str, NDArray[Any]]) -> tuple[float, str]:
    """The largest finite size of any float that llama.cpp computes for these inputs, and the operation that gives it.

    Raises:
        VerificationError, MissingDependency, StageError: as `first_divergence`.
    """
    found = (0.0, "nothing")

    def look(kind: str, result: _Tensor) -> None:
        nonlocal found
        if result.type == F32:
            size = _values(result).abs()
            largest = float(torch.where(size.isfinite(), size, 0).max()) if size.numel() else 0.0
            found = max(found, (largest, f"{kind} {result.name.decode('utf-8', 'replace')}"))

    _watched(path, feeds, look)
    return found


def _watched(path: Path, feeds: Mapping[str, NDArray[Any]], look: Look) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """The answer, `look` having seen every operation; and the inputs without padding, which llama.cpp does not see."""
    import llama_cpp

    names = _names()
    seen: list[Exception] = []

    def after(address: int, ask: bool, _: Any) -> bool:
        if not ask and not seen:
            try:
                result = ctypes.cast(address, _Pointer).contents
                look(names(address), result)
            except (StageError, ValueError) as error:  # it cannot pass through llama.cpp
                seen.append(error)
        return True

    watch = llama_cpp.ggml_backend_sched_eval_callback(after)
    tokens = int(feeds["attention_mask"].sum()) if "attention_mask" in feeds else feeds["input_ids"].shape[1]
    ids = {name: value[:, :tokens] for name, value in feeds.items()}
    with contextlib.closing(open_file(path, exact=True, lengths=[tokens], watch=watch)) as runner:
        (signature,) = runner.signatures
        answer = runner.run(signature, ids)["logits"]
    if seen:
        raise StageError(f"{path}: cannot look into llama.cpp: {seen[0]}")
    return answer, ids


def _names() -> Callable[[int], str]:
    """The name of the operation behind an address, by ggml itself; refuses a build whose structure is another.

    Raises:
        StageError: the structure above is not that of this build.
    """
    import llama_cpp.llama_cpp as bindings

    folder = Path(bindings.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(folder.glob("libggml-base.so"), folder / "libggml-base.dylib")))
    library.ggml_op_desc.restype = library.ggml_get_name.restype = ctypes.c_char_p
    library.ggml_op_desc.argtypes = library.ggml_get_name.argtypes = [ctypes.c_void_p]
    library.ggml_nbytes.restype, library.ggml_nbytes.argtypes = ctypes.c_size_t, [ctypes.c_void_p]

    def name(address: int) -> str:
        tensor = ctypes.cast(address, _Pointer).contents
        wrong = tensor.type in _DTYPES and all(tensor.ne) and library.ggml_nbytes(address) != _bytes_of(tensor)
        if wrong or library.ggml_get_name(address) != tensor.name:
            raise StageError("this build of llama.cpp has another ggml_tensor than llama-cpp-python 0.3.36.")
        return bytes(library.ggml_op_desc(address)).decode()

    return name


def _values(tensor: _Tensor) -> Tensor:
    """A tensor's numbers, largest axis first as torch has them; copied, as ggml reuses the memory."""
    dtype = _DTYPES.get(tensor.type)
    if dtype is None or not tensor.data:
        raise StageError(f"{tensor.name.decode('utf-8', 'replace')} is of ggml type {tensor.type}")
    shape, strides = list(tensor.ne)[::-1], list(tensor.nb)[::-1]
    raw = memoryview((ctypes.c_char * _bytes_of(tensor)).from_address(tensor.data)).cast("B")
    return torch.from_numpy(np.ndarray(shape, dtype, raw, strides=strides).copy())


def _bytes_of(tensor: _Tensor) -> int:
    """From a tensor's first byte to its last, whatever the order of its axes."""
    return 4 + sum((tensor.ne[n] - 1) * tensor.nb[n] for n in range(4)) if all(tensor.ne) else 0


def _as_q8_0(values: Tensor) -> Tensor:
    """What enters a quantized layer in llama.cpp: 8 bits with one scale for 32 neighbours (`quantize_row_q8_0`)."""
    blocks = values.float().reshape(-1, SIZE)
    scales = blocks.abs().amax(1, keepdim=True) / 127
    inverse = torch.where(scales > 0, 1 / scales, torch.zeros(()))
    return ((blocks * inverse).round() * scales.half().float()).reshape(values.shape)
