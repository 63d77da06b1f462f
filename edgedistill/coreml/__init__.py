"""A reference evaluator of Core ML packages: it opens an .mlpackage and computes it with torch, on any machine.

It models an ideal device; nothing ran on Apple hardware. What it shows is that the file, as its bytes say, computes
what was meant: the graph, the constants, the types. It does not show how a Neural Engine, a GPU or a CPU of Apple
rounds, orders its sums, or whether it runs an operation at all. It shares torch's kernels with the student it checks,
but none of coremltools' conversion: the package's protobuf and weight file are decoded here.

Three precisions, the same arithmetic:

    fp64    Every float is float64 and nothing is rounded; casts between float types do nothing. Shows whether the
            graph and the constants are right: the difference to a float64 student is rounding of stored weights only.
    fp32    Every float is float32. Rounded to fp16 is what the program itself stores as fp16: inputs, states and the
            results of `cast`; not the results of other operations, nor compressed constants once they are decoded. A
            program typed float32 is computed as it is typed.
    fp16    As fp32, and the result of every operation that the program types fp16 is rounded to fp16, once: inside
            an operation sums are float32. A real device may round, overflow and saturate inside an operation as well.
"""

from edgedistill.coreml.audit import Overflow, Risk, lint, overflow_audit
from edgedistill.coreml.evaluate import Evaluator, Precision, State, Trace
from edgedistill.coreml.program import Constant, Function, Operation, Program, TensorType
from edgedistill.coreml.reading import load

__all__ = [
    "Constant",
    "Evaluator",
    "Function",
    "Operation",
    "Overflow",
    "Precision",
    "Program",
    "Risk",
    "State",
    "TensorType",
    "Trace",
    "lint",
    "load",
    "overflow_audit",
]
