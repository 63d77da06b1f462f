"""Compute a program with torch: the constants once, the rest for every prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgedistill.coreml.kernels import KERNELS, UNCHANGED, Kernel
from edgedistill.coreml.program import Constant, Operation, Program, TensorType
from edgedistill.coreml.values import INTEGERS, LARGEST, Arguments, Cell, Value, round_half, to_tensor
from edgedistill.errors import VerificationError

Precision = Literal["fp64", "fp32", "fp16"]
Trace: TypeAlias = Callable[[str, str, Tensor], None]
State: TypeAlias = dict[str, Cell]

# What torch raises when a program's arguments make no sense.
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, ArithmeticError, AttributeError, MemoryError)
_STATEFUL = frozenset({"read_state", "write_state", "coreml_update_state"})
# Constants up to this size are also kept as Python numbers, which is how kernels read sizes, axes and strides.
_PLAIN_ELEMENTS = 4096


@dataclass(frozen=True, eq=False)
class _Step:
    """One operation, ready to run: `fixed` arguments, the names `varying` arguments are bound to, and what it frees."""

    operation: Operation
    kernel: Kernel
    fixed: Mapping[str, tuple[Value, ...]]
    plain: Mapping[str, list[Any]]
    varying: tuple[tuple[str, tuple[str | Value, ...]], ...]
    types: tuple[TensorType | None, ...]
    frees: tuple[str, ...]


class Evaluator:
    """A program that can be run; see the package for what each precision means.

    `trace(name, operation, value)` is called with every tensor an operation computes in a prediction, in order, and
    with every value written to a state; not with constants, which are computed here. It must not change the value.
    """

    def __init__(
        self, program: Program, precision: Precision, trace: Trace | None = None, *, function: str | None = None
    ) -> None:
        """Read the weights of `function` (the default one) and compute all that no input reaches.

        Raises:
            VerificationError: if an operation is not known, or the program contradicts itself.
        """
        if precision not in get_args(Precision):
            raise VerificationError(f"precision {precision!r}; allowed: {', '.join(get_args(Precision))}")
        name = program.default if function is None else function
        if name not in program.functions:
            raise VerificationError(f"{program.path}: no function {name!r}; it has {', '.join(program.functions)}")
        self.program, self.function, self.precision = program, program.functions[name], precision
        self.trace: Trace | None = None  # constants are not traced
        self._work = torch.float64 if precision == "fp64" else torch.float32
        for operation in self.function.operations:
            if operation.blocks or (operation.kind != "const" and operation.kind not in KERNELS):
                raise VerificationError(f"{program.path}: {operation} is not known to the reference evaluator.")
        with torch.no_grad():
            self._steps, self.constants = self._compiled()
        self.trace = trace

    def new_state(self) -> State:
        """Every state of the function, zero as Core ML makes it; `predict` changes it."""
        return {name: self._new_cell(name, kind) for name, kind in self.function.states.items()}

    @torch.inference_mode()
    def predict(self, feeds: Mapping[str, NDArray[Any]], state: State | None = None) -> dict[str, NDArray[Any]]:
        """Outputs by name: floats as float64 in precision fp64 and float32 otherwise.

        Without a `state`, a program that has states starts from zero and forgets them afterwards.

        Raises:
            VerificationError: if a feed is missing, unknown, or of a wrong type or shape, or an operation fails.
        """
        cells = self.new_state() if state is None else state
        if set(cells) != set(self.function.states):
            raise VerificationError(f"states {sorted(cells)} given; the program has {sorted(self.function.states)}")
        values: dict[str, Value] = {**self._fed(feeds), **cells}
        for step in self._steps:
            self._run(step, values)
            for name in step.frees:
                del values[name]
        # an output that no input reaches is a constant
        return {name: _to_numpy(values.get(name, self.constants.get(name, ()))) for name in self.function.outputs}

    def _new_cell(self, name: str, kind: TensorType) -> Cell:
        if not kind.is_static:
            raise VerificationError(f"{self.program.path}: state {name} has no fixed shape")
        shape = tuple(size or 0 for size in kind.shape or ())
        if math.prod(shape) > LARGEST:
            raise VerificationError(f"{self.program.path}: state {name} has {math.prod(shape)} elements")
        return Cell(torch.zeros(shape, dtype=self._dtype(kind)), kind.dtype == "fp16" and self.precision != "fp64")

    def _dtype(self, kind: TensorType) -> torch.dtype:
        if not kind.is_float and kind.dtype not in INTEGERS:
            raise VerificationError(f"{self.program.path}: a tensor is typed {kind.dtype}")
        return self._work if kind.is_float else INTEGERS[kind.dtype]

    def _fed(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Value]:
        wanted = self.function.inputs
        if set(feeds) != set(wanted):
            raise VerificationError(f"{self.program.path}: fed {sorted(feeds)}; the inputs are {sorted(wanted)}")
        return {name: self._feed(name, kind, np.asarray(feeds[name])) for name, kind in wanted.items()}

    def _feed(self, name: str, kind: TensorType, array: NDArray[Any]) -> Tensor:
        """A copy of one feed as a tensor: a kernel may return it as it is, and torch takes no read-only array."""
        where = f"{self.program.path}: input {name}"
        dtype, feature = self._dtype(kind), self.function.features.get(name)
        if array.dtype.kind not in ("fiub" if kind.is_float else "iub"):
            raise VerificationError(f"{where} takes {kind.dtype}, not {array.dtype}")
        if not _agrees(array.shape, kind.shape) or (feature is not None and not feature.accepts(array.shape)):
            raise VerificationError(f"{where} does not take shape {list(array.shape)}")
        if kind.is_float:
            with np.errstate(over="ignore"):
                value = torch.from_numpy(np.array(array, np.float64 if dtype == torch.float64 else np.float32))
            return round_half(value) if kind.dtype == "fp16" and self.precision != "fp64" else value
        low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        if array.size and not low <= array.min() <= array.max() <= high:
            raise VerificationError(f"{where} has values that are no {kind.dtype}")
        return torch.from_numpy(np.array(array, np.int64)).to(dtype)

    def _run(self, step: _Step, values: dict[str, Value]) -> None:
        """Compute one step and add what it defines to `values`.

        Raises:
            VerificationError: naming the operation and its output.
        """
        operation = step.operation
        bound = dict(step.fixed)
        for name, names in step.varying:
            bound[name] = tuple(values[one] if isinstance(one, str) else one for one in names)
        arguments = Arguments(bound, step.plain, step.types, self._work, self.function.opset)
        try:
            result = step.kernel(arguments)
        except (VerificationError, *_REFUSALS) as error:
            reason = str(error).split("\n")[0] or type(error).__name__
            raise VerificationError(f"{self.program.path}: {operation}: {reason}") from error
        results = [] if result is None else result if isinstance(result, list) else [result]
        if len(results) != len(operation.outputs):
            raise VerificationError(f"{self.program.path}: {operation} defines {len(operation.outputs)} values")
        for output, kind, value in zip(operation.outputs, step.types, results, strict=True):
            value = self._conformed(operation, kind, value)
            values[output.name] = value
            if self.trace is not None and isinstance(value, Tensor):
                self.trace(output.name, operation.kind, value)
        if self.trace is not None and operation.kind == "write_state":
            self.trace(operation.names_read[0], operation.kind, arguments.cell("input").value)

    def _conformed(self, operation: Operation, kind: TensorType | None, value: Value) -> Value:
        """The value as the program types it: refused if it is something else, rounded where the precision says so."""
        if not isinstance(value, Tensor) or kind is None:
            return value
        wanted = self._dtype(kind)
        if value.dtype != wanted:
            if value.is_floating_point() or kind.is_float or torch.bool in (value.dtype, wanted):
                raise VerificationError(f"{self.program.path}: {operation} gives {value.dtype}, typed {kind.dtype}")
            value = value.to(wanted)
        if not _agrees(value.shape, kind.shape):
            raise VerificationError(
                f"{self.program.path}: {operation} gives shape {list(value.shape)}; the program says "
                f"{list(kind.shape or ())}"
            )
        if kind.dtype != "fp16" or self.precision == "fp64":
            return value
        if operation.kind == "cast" or (self.precision == "fp16" and operation.kind not in UNCHANGED):
            return round_half(value)
        return value

    def _compiled(self) -> tuple[tuple[_Step, ...], dict[str, Value]]:
        """The steps that inputs reach, and every constant that they or the outputs read."""
        known: dict[str, Value] = {}
        pending: list[Operation] = []
        for operation in self.function.operations:
            if operation.kind == "const":
                known[operation.name] = self._constant(operation)
            elif operation.kind not in _STATEFUL and all(name in known for name in operation.names_read):
                self._run(self._step(operation, known, ()), known)
            else:
                pending.append(operation)
        last = {name: index for index, operation in enumerate(pending) for name in operation.names_read}
        kept = {*self.function.outputs, *self.function.states, *known}
        # a value nobody reads is freed where it is defined
        born = {output.name: index for index, operation in enumerate(pending) for output in operation.outputs}
        frees: dict[int, list[str]] = {}
        for name, index in {**born, **last}.items():
            if name not in kept:
                frees.setdefault(index, []).append(name)
        steps = tuple(self._step(op, known, tuple(frees.get(index, ()))) for index, op in enumerate(pending))
        read = {*last, *self.function.outputs}
        return steps, {name: value for name, value in known.items() if name in read}

    def _constant(self, operation: Operation) -> Value:
        bound = operation.inputs.get("val", ())
        kind = operation.outputs[0].type if len(operation.outputs) == 1 else None
        if len(bound) != 1 or not isinstance(bound[0], Constant) or kind != bound[0].type:
            raise VerificationError(f"{self.program.path}: {operation} does not hold one value of its own type")
        return to_tensor(bound[0].array(), self._work)

    def _step(self, operation: Operation, known: Mapping[str, Value], frees: tuple[str, ...]) -> _Step:
        fixed: dict[str, tuple[Value, ...]] = {}
        varying: list[tuple[str, tuple[str | Value, ...]]] = []
        for name, bindings in operation.inputs.items():
            bound = tuple(self._bound(one, known) for one in bindings)
            constant = tuple(one for one in bound if not isinstance(one, str))
            if len(constant) == len(bound):
                fixed[name] = constant
            else:
                varying.append((name, bound))
        plain = {
            name: bound[0].reshape(-1).tolist()
            for name, bound in fixed.items()
            if len(bound) == 1 and isinstance(bound[0], Tensor) and bound[0].numel() <= _PLAIN_ELEMENTS
        }
        types = tuple(output.type for output in operation.outputs)
        return _Step(operation, KERNELS[operation.kind], fixed, plain, tuple(varying), types, frees)

    def _bound(self, one: str | Constant, known: Mapping[str, Value]) -> str | Value:
        if isinstance(one, Constant):
            return to_tensor(one.array(), self._work)
        return known.get(one, one)


def _agrees(shape: tuple[int, ...], declared: tuple[int | None, ...] | None) -> bool:
    if declared is None or shape == declared:
        return True
    return len(shape) == len(declared) and all(
        want is None or size == want for size, want in zip(shape, declared, strict=True)
    )


def _to_numpy(value: Value) -> NDArray[Any]:
    if isinstance(value, Tensor):
        array: NDArray[Any] = value.numpy().copy()
        return array
    return np.array(value if isinstance(value, tuple) else (), np.str_)
