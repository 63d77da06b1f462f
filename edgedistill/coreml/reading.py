"""Open an .mlpackage: find its model, parse it, and refuse whatever does not hang together before using any of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgedistill.coreml.constants import ConstantReader, tensor_type
from edgedistill.coreml.package import model_file_of
from edgedistill.coreml.program import Feature, Function, Metadata, Operation, Output, Program, TensorType
from edgedistill.coreml.proto import messages
from edgedistill.errors import ForeignFile

_ARRAY_TYPES = {65552: "fp16", 65568: "fp32", 65600: "fp64", 131080: "int8", 131104: "int32"}


def load(path: Path) -> Program:
    """Parse and validate the package at `path`; weights are located and checked, and read only when asked for.

    Raises:
        MissingDependency: if coremltools is not installed.
        ForeignFile: if the package is damaged, foreign, no ML Program, or refers to anything outside itself.
    """
    root = path.resolve() if path.is_dir() else None
    if root is None:
        raise ForeignFile(f"{path}: not a .mlpackage folder.")
    model_file = model_file_of(path, root)
    spec = _parse(model_file)
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise ForeignFile(f"{path}: holds a model of type {kind}; only an ML Program (iOS 15 and later) is read.")
    reader = ConstantReader(path, root, model_file.parent)
    functions = {name: _function(path, name, body, reader) for name, body in spec.mlProgram.functions.items()}
    description = spec.description
    default = description.defaultFunctionName or "main"
    if default not in functions:
        raise ForeignFile(f"{path}: has no function {default!r}; it has {', '.join(functions) or 'none'}.")
    functions = {name: _described(path, function, description, default) for name, function in functions.items()}
    return Program(
        path, spec.specificationVersion, functions, default, _metadata(description.metadata), reader.weight_files
    )


def _parse(model_file: Path) -> Any:
    from google.protobuf.message import DecodeError

    spec = messages().Model()
    try:
        spec.ParseFromString(model_file.read_bytes())
    except DecodeError as error:
        raise ForeignFile(f"{model_file}: damaged or truncated model file ({error}). Export it again.") from None
    return spec


def _function(path: Path, name: str, body: Any, reader: ConstantReader) -> Function:
    match = re.fullmatch(r"CoreML(\d{1,3})", body.opset)
    if match is None or body.opset not in body.block_specializations:
        raise ForeignFile(f"{path}: function {name} has no block for the operation set {body.opset!r}.")
    block = body.block_specializations[body.opset]
    inputs: dict[str, TensorType] = {}
    states: dict[str, TensorType] = {}
    for value in body.inputs:
        where = f"{path}: input {value.name} of function {name}"
        if value.type.WhichOneof("type") == "stateType":
            states[value.name] = tensor_type(where, value.type.stateType.wrappedType)
        else:
            inputs[value.name] = tensor_type(where, value.type)
    known = {*inputs, *states}
    operations = []
    for op in block.operations:
        operation = _operation(path, op, reader)
        _in_scope(path, operation, known)
        operations.append(operation)
    missing = sorted(set(block.outputs) - known)
    if missing or not block.outputs:
        raise ForeignFile(f"{path}: function {name} returns {', '.join(missing) or 'nothing'}, defined nowhere.")
    return Function(name, int(match[1]), inputs, states, tuple(operations), tuple(block.outputs))


def _in_scope(path: Path, operation: Operation, known: set[str]) -> None:
    """Every value read was defined before, and every value defined is new; then they are known too."""
    for name in operation.names_read:
        if name not in known:
            raise ForeignFile(f"{path}: {operation} reads {name}, which no earlier operation defines.")
    for output in operation.outputs:
        if output.name in known:
            raise ForeignFile(f"{path}: {operation} defines {output.name} a second time.")
        known.add(output.name)


def _operation(path: Path, op: Any, reader: ConstantReader) -> Operation:
    outputs = tuple(
        Output(value.name, tensor_type(f"{path}: {op.type} ({value.name})", value.type))
        if value.type.WhichOneof("type") == "tensorType"
        else Output(value.name, None)
        for value in op.outputs
    )
    name = outputs[0].name if outputs else _attribute_name(op)
    where = f"{path}: {op.type} ({name})"
    inputs: dict[str, tuple[str | Any, ...]] = {}
    for key, argument in op.inputs.items():
        bound = []
        for binding in argument.arguments:
            match binding.WhichOneof("binding"):
                case "name":
                    bound.append(binding.name)
                case "value":
                    bound.append(reader.constant(f"{where}, argument {key}", binding.value))
                case _:
                    raise ForeignFile(f"{where}: argument {key} is bound to nothing.")
        inputs[key] = tuple(bound)
    # const and, below iOS 18, the constexpr operations keep their arguments as attributes
    if op.type == "const" or op.type.startswith("constexpr_"):
        for key, value in op.attributes.items():
            if key != "name" and key not in inputs:
                inputs[key] = (reader.constant(f"{where}, attribute {key}", value),)
    return Operation(op.type, name, inputs, outputs, len(op.blocks))


def _attribute_name(op: Any) -> str:
    values = op.attributes["name"].immediateValue.tensor.strings.values if "name" in op.attributes else ()
    return str(values[0]) if values else "unnamed"


def _described(path: Path, function: Function, description: Any, default: str) -> Function:
    """The function with the features that the model's description promises for it."""
    if function.name == default and not description.functions:
        promised = description
    else:
        promised = next((entry for entry in description.functions if entry.name == function.name), None)
    if promised is None:
        raise ForeignFile(f"{path}: function {function.name} is not described.")
    features, results = _features(promised.input), _features(promised.output)
    for side, told, real in (("inputs", features, function.inputs), ("outputs", results, function.outputs)):
        if set(told) != set(real):
            raise ForeignFile(
                f"{path}: function {function.name} has {side} {sorted(real)}; its description says {sorted(told)}."
            )
    return replace(function, features=features, results=results)


def _features(entries: Iterable[Any]) -> Mapping[str, Feature]:
    return {entry.name: _feature(entry) for entry in entries}


def _feature(entry: Any) -> Feature:
    kind = (entry.type.WhichOneof("Type") or "unknown").removesuffix("Type")
    if kind != "multiArray":
        return Feature(entry.name, kind, description=entry.shortDescription)
    array = entry.type.multiArrayType
    bounds = tuple(
        (max(int(size.lowerBound), 0), None if size.upperBound < 0 else int(size.upperBound))
        for size in array.shapeRange.sizeRanges
    )
    return Feature(
        entry.name,
        kind,
        _ARRAY_TYPES.get(array.dataType, f"type {array.dataType}"),
        tuple(array.shape),
        bounds,
        frozenset(tuple(shape.shape) for shape in array.enumeratedShapes.shapes),
        entry.shortDescription,
    )


def _metadata(entry: Any) -> Metadata:
    return Metadata(
        entry.shortDescription, entry.author, entry.license, entry.versionString, dict(entry.userDefined.items())
    )
