"""Names of a program's values that follow from it alone: an operator and a number, in the order of the program.

coremltools names a value after the variable of the python code that made it, or by its number in torch's trace. Either
is another under a debugger or with types checked at run time, and then the same student is a file of other bytes. What
a reader knows keeps its name: inputs, outputs and states, and the tensors and grids of the student.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterator, Set
from pathlib import Path
from typing import Any

from edgedistill.coreml.package import model_file_of
from edgedistill.coreml.proto import messages
from edgedistill.errors import StageError

RENAMED = re.compile(r"(_cast_fp16|_to_fp16)$")  # what coremltools adds to the name of a value that it rounds


def settle(package: Path, known: Set[str]) -> dict[str, str]:
    """Rename the values of the program in a package; `known` names keep theirs, whatever coremltools added to them.

    Returns:
        The new name of each operation, by the old one.

    Raises:
        StageError: if it branches or loops, as no student does.
    """
    model_file, model = model_file_of(package, package.resolve()), messages().Model()
    model.ParseFromString(model_file.read_bytes())
    names: dict[str, str] = {}
    for function in model.mlProgram.functions.values():
        for block in function.block_specializations.values():
            names |= _settle(function, block, known)
    model_file.write_bytes(model.SerializeToString())
    return names


def _settle(function: Any, block: Any, known: Set[str]) -> dict[str, str]:
    """The numbers of a kind also count what keeps its name: `linear_3` is the fourth."""
    fixed = {value.name for value in function.inputs} | set(block.outputs)
    values = [output.name for operation in block.operations for output in operation.outputs]
    fixed |= {name for name in values if RENAMED.sub("", name) in known}
    names, counts = {name: name for name in fixed}, Counter[str]()
    for operation in block.operations:
        if operation.blocks:
            raise StageError(f"Core ML: a student's program has no {operation.type}, which holds others.")
        told = operation.attributes["name"].immediateValue.tensor.strings.values
        new = _free(operation.type, counts, fixed)
        for number, output in enumerate(operation.outputs):
            output.name = names.setdefault(output.name, new if len(operation.outputs) == 1 else f"{new}_{number}")
        for binding in _bindings(operation):
            binding.name = names[binding.name]
        told[:] = [operation.outputs[0].name if len(operation.outputs) == 1 else new]
    return names


def _free(kind: str, counts: Counter[str], fixed: Container[str]) -> str:
    """The next name of an operation of that kind."""
    while f"{kind}_{counts[kind]}" in fixed:
        counts[kind] += 1
    counts[kind] += 1
    return f"{kind}_{counts[kind] - 1}"


def _bindings(operation: Any) -> Iterator[Any]:
    """The arguments of an operation that are other values."""
    for argument in operation.inputs.values():
        yield from (binding for binding in argument.arguments if binding.WhichOneof("binding") == "name")
