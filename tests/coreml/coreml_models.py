"""Torch modules as packages: one quiet call of coremltools."""

import contextlib
import functools
import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

Arrays = Mapping[str, np.ndarray]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """coremltools warns of versions, of missing macOS libraries and of casts it makes; none of it is ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


@functools.cache
def coremltools() -> Any:
    with quiet():
        import coremltools as ct
    # every conversion ends in a full garbage collection; looking through the modules of torch took four fifths of it
    gc.freeze()
    return ct


def convert(
    module: torch.nn.Module,
    feeds: Arrays,
    out: Path,
    *,
    target: str = "iOS17",
    precision: str = "fp32",
    outputs: Sequence[str] = (),
    shapes: Mapping[str, Any] | None = None,
    states: Sequence[Any] = (),
    pipeline: Any = None,
) -> Path:
    """Trace `module` on `feeds` and write the package `out`; interface types are float32 and int32."""
    ct = coremltools()
    examples = tuple(torch.from_numpy(np.array(feed)) for feed in feeds.values())
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(module.eval(), examples, check_trace=False, strict=False)
        model = ct.convert(
            traced,
            convert_to="mlprogram",
            inputs=[
                ct.TensorType(
                    name=name,
                    shape=(shapes or {}).get(name, feed.shape),
                    dtype=np.float32 if feed.dtype.kind == "f" else np.int32,
                )
                for name, feed in feeds.items()
            ],
            outputs=[ct.TensorType(name=name, dtype=np.float32) for name in outputs] or None,
            states=list(states) or None,
            compute_precision=ct.precision.FLOAT16 if precision == "fp16" else ct.precision.FLOAT32,
            minimum_deployment_target=getattr(ct.target, target),
            pass_pipeline=pipeline,
            skip_model_load=True,
        )
        model.save(str(out))
    return out


def built(
    make: Callable[[Any, dict[str, Any]], Any],
    feeds: Arrays,
    out: Path,
    *,
    target: str = "iOS18",
    states: Mapping[str, tuple[int, ...]] | None = None,
    pipeline: Any = None,
) -> Path:
    """The package of what `make(mb, inputs)` returns; states are fp16, of the given shapes.

    Operation for operation, unless a `pipeline` of passes is given.
    """
    ct = coremltools()
    with quiet():
        from coremltools.converters.mil import Builder as mb
        from coremltools.converters.mil.mil import Function, Program, types

        inputs = {
            name: mb.placeholder(feed.shape, types.numpy_type_to_builtin_type(feed.dtype))
            for name, feed in feeds.items()
        }
        inputs |= {name: mb.state_tensor_placeholder(shape, types.fp16) for name, shape in (states or {}).items()}
        opset = getattr(ct.target, target)
        program = Program()
        with Function(inputs, opset_version=opset) as function:
            results = make(mb, dict(function.inputs))
            function.set_outputs(list(results) if isinstance(results, tuple | list) else [results])
            program.add_function("main", function)
        model = ct.convert(
            program,
            convert_to="mlprogram",
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=opset,
            pass_pipeline=ct.PassPipeline.EMPTY if pipeline is None else pipeline,
            skip_model_load=True,
        )
        model.save(str(out))
    return out
