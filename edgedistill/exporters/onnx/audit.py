"""What an .onnx says about where it runs, without running it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from edgedistill.exporters.onnx.contents import Contents, attributes, open_file
from edgedistill.exporters.onnx.groups import PRODUCTS, groups
from edgedistill.specs import Audit


def audit(path: Path) -> Audit:
    """The oldest ONNX Runtime whose CPU provider has every operator of the file, its operators, and their risks.

    Version 1.18 brought opset 21; 4-bit integers and groups came after it (its pull requests 20362 and 20901).

    Raises:
        VerificationError: if the file is foreign or damaged.
    """
    file = open_file(path)
    counts = Counter(node.op_type for node in file.graph.node)
    oldest = "1.19" if _has_int4(file) or _has_groups(file) else "1.18"
    return Audit(
        runtime_min=f"ONNX Runtime {oldest}", operators=dict(sorted(counts.items())), risks=tuple(_risks(file, counts))
    )


def _risks(file: Contents, counts: Counter[str]) -> list[str]:
    found = []
    if "QuantizeLinear" not in counts:
        found.append(
            "activations are float here; ONNX Runtime rounds them at run time for some int8 layers when its "
            "optimization is ORT_ENABLE_EXTENDED or more, its default: up to 2 % of the largest output on small "
            "students, where ORT_ENABLE_BASIC gives the student's answers"
        )
    else:
        made, products = len(groups(file)), sum(counts[kind] for kind in PRODUCTS)
        found.append(
            f"{made} of {products} linear layers and convolutions are QDQ groups: uint8 activations with zero points, "
            "int8 weights, int32 biases. ONNX Runtime computes them in integers, as trained, with its default "
            "optimization. With ORT_ENABLE_BASIC or less they are floats: a value between two codes, to 3e-4 of a "
            "step, may then take the other one, which layers behind it may make more of. That was 1 to 7 % of the "
            "answers of small random students, by up to 7 steps of the output, and each of EfficientNet-lite0's, by up "
            "to 3; all other codes are the student's. "
            "Providers that want symmetric activations, such as TensorRT, take none; what is between groups is float"
        )
        found.append(
            "x86 processors without VNNI: ONNX Runtime's products of uint8 and int8 may overflow 16 bits there, unless "
            'the app sets its option "session.x64quantprecision" to "1"'
        )
    if _has_int4(file):
        found.append("4-bit integers: runtimes older than 2024, and many providers for accelerators, refuse them")
    if _has_groups(file):
        found.append("groups along an axis: OpenVINO has read them in another order (its pull request 32917)")
    return found


def _has_int4(file: Contents) -> bool:
    from onnx import TensorProto

    return any(tensor.data_type == TensorProto.INT4 for tensor in file.constants.values())


def _has_groups(file: Contents) -> bool:
    return any("block_size" in attributes(node) for node in file.graph.node)
