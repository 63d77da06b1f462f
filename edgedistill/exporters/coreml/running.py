"""Execute a package with the reference evaluator: an ideal device, in float32, on any machine.

It is not Apple's runtime, and no figure of it is a device's: it shows what the file's bytes say.
See `edgedistill.coreml` for what that proves, and `replay_golden.py` in a bundle for the same samples on a Mac.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill import coreml
from edgedistill.coreml import Evaluator, Precision
from edgedistill.coreml.program import Feature, Function
from edgedistill.errors import DataError, MissingDependency, StageError, VerificationError
from edgedistill.exporters.coreml.card import card_of
from edgedistill.exporters.coreml.network import POSITION
from edgedistill.students import Port, Signature


def beginning(function: Function) -> dict[str, NDArray[np.int32]]:
    """What a decoder is fed beside its ids at the beginning of a text; nothing where there are no states."""
    return {POSITION.name: np.zeros(POSITION.shape, np.int32)} if function.states else {}


class Session:
    """A text that a decoder reads part by part, its states holding what was read."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator, self._state = evaluator, evaluator.new_state()
        self.position = 0

    def read(self, ids: NDArray[np.int32]) -> NDArray[Any]:
        """The logits [1, N, vocabulary] after each of the next tokens, ids [1, N].

        Raises:
            StageError: if the program cannot be computed; also where the text becomes longer than the states.
        """
        feeds = {"input_ids": ids, POSITION.name: np.array([self.position], np.int32)}
        slots = next(iter(self._evaluator.function.states.values())).shape
        if slots is None or self.position + ids.shape[1] > (slots[2] or 0):
            raise StageError(f"{self.position} tokens and {ids.shape[1]} more do not fit states of {slots}.")
        try:
            found = self._evaluator.predict(feeds, self._state)
        except VerificationError as error:
            raise StageError(f"The reference evaluator failed: {error}") from error
        self.position += ids.shape[1]
        return found[self._evaluator.function.outputs[0]]


class CoremlRunner:
    """A loaded package; its one entry point is the program's default function.

    `run` begins a new text each time; a decoder also has `session`, which goes on with one.
    """

    def __init__(self, evaluator: Evaluator, signature: Signature) -> None:
        self._evaluator, self._signature = evaluator, signature

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The entry point as the file describes it, ids before masks; a size of -1 is 1 up to the largest bucket."""
        return {self._signature.name: self._signature}

    def run(self, signature: str, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs of one call, by name.

        Raises:
            DataError: if an input is missing or has a shape or dtype that the file does not take.
            StageError: if the program cannot be computed.
        """
        features = self._evaluator.function.features
        for port in self.signatures[signature].inputs:
            given = feeds.get(port.name)
            if given is None or given.dtype != port.dtype or not features[port.name].accepts(given.shape):
                seen = "nothing" if given is None else f"{given.dtype}{list(given.shape)}"
                raise DataError(
                    f"Signature {signature} takes {port.name} as {port.dtype}{_sizes(features[port.name])}, got {seen}."
                )
        try:
            known = {port.name: feeds[port.name] for port in self._signature.inputs}
            found = self._evaluator.predict({**known, **beginning(self._evaluator.function)})
        except VerificationError as error:
            raise StageError(f"The reference evaluator failed: {error}") from error
        return {name: np.asarray(values, np.float32) for name, values in found.items()}

    def session(self) -> Session:
        """A new text of a decoder.

        Raises:
            StageError: if the program has no states.
        """
        if not self._evaluator.function.states:
            raise StageError("This Core ML program has no states: it reads whole texts.")
        return Session(self._evaluator)


def load(path: Path, threads: int = 1, precision: Precision = "fp32") -> CoremlRunner:
    """Open a package for execution; torch's threads are the process's own, whatever `threads` says.

    `precision` is the evaluator's: "fp32" computes the stored numbers in float32, "fp16" rounds the result of every
    operation as an ideal fp16 device would.

    Raises:
        MissingDependency: if coremltools, whose message classes are needed, is not installed.
        StageError: if the package cannot be opened, or holds operations that the evaluator does not know.
    """
    try:
        program = coreml.load(path)
        name = card_of(program).signature
        evaluator = Evaluator(program, precision)
    except MissingDependency:
        raise
    except VerificationError as error:
        raise StageError(f"Core ML: cannot load {path}: {error}") from error
    function = evaluator.function
    hidden = beginning(function)
    inputs = tuple(_port(feature) for name, feature in function.features.items() if name not in hidden)
    return CoremlRunner(evaluator, Signature(name, inputs, tuple(map(_port, function.results.values()))))


def _port(feature: Feature) -> Port:
    dtypes = {"int32": "int32", "fp32": "float32"}
    if feature.dtype not in dtypes:
        raise StageError(f"Core ML: {feature.name} is {feature.dtype}; files of this package take int32 and float32.")
    bounds = feature.bounds or tuple((size, size) for size in feature.shape)
    shape = tuple(low if low == high else -1 for low, high in bounds)
    return Port(feature.name, shape, "int32" if feature.dtype == "int32" else "float32")


def _sizes(feature: Feature) -> str:
    bounds = feature.bounds or tuple((size, size) for size in feature.shape)
    return "[" + ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in bounds) + "]"
