"""What XNNPACK computes in a layer with dynamic activations, alone in a file: the formula that students train with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgedistill.quant.activations import quantize_rows
from edgedistill.specs.quant import PerChannel, PerGroup, WeightGrid


def test_xnnpack_quantizes_rows_with_our_formula(tmp_path: Path) -> None:
    """One linear layer alone, on rows of every kind: equal to the last bits, so every integer was the same."""
    litert_torch = pytest.importorskip("litert_torch")
    from ai_edge_litert.interpreter import Interpreter
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    from edgedistill.exporters.tflite.graph import _Pairs
    from edgedistill.quant.activations import dynamic_linear
    from edgedistill.quant.grid import dequantize, quantize, scales_of

    torch.manual_seed(0)
    layer = nn.Linear(64, 32)
    scales = scales_of(layer.weight)
    codes = quantize(layer.weight.detach(), scales)
    layer.weight.data = dequantize(codes, scales)
    x = torch.cat([torch.randn(60, 64) * 10, torch.rand(20, 64) + 1, -torch.rand(19, 64), torch.zeros(1, 64)])
    # and half way between two codes, where the last bit of a row's scale decides; the range stays as it is
    low, high = x[:60].amin(1, keepdim=True), x[:60].amax(1, keepdim=True)
    halves = (torch.randint(-90, 90, (60, 64)) + 0.5) / (torch.tensor(255.0) / (high - low))
    x = torch.cat([x, torch.cat([halves.clamp(low, high)[:, 2:], low, high], 1)])
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    quantizer = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(config))
    model = litert_torch.convert(_Pairs(layer, scales, None).eval(), (x,), quant_config=quantizer)
    model.export(str(tmp_path / "layer.tflite"))
    runner = Interpreter(model_path=str(tmp_path / "layer.tflite"), num_threads=1).get_signature_runner()
    found = torch.from_numpy(runner(args_0=x.numpy())["output_0"])
    ours = dynamic_linear(x, codes, scales, layer.bias.detach())
    assert torch.allclose(found, ours, rtol=1e-6, atol=3e-6)
    symmetric = torch.round(x / (x.abs().amax(1, keepdim=True) / 127).clamp_min(1e-9))
    assert not torch.equal(quantize_rows(x)[0], symmetric)


@pytest.mark.parametrize("granularity", [PerChannel(), PerGroup()])
def test_xnnpack_multiplies_int4_with_the_same_formula(tmp_path: Path, granularity: PerChannel | PerGroup) -> None:
    """Codes down to -8, scales clipped; LiteRT's own kernel, without XNNPACK, gets -8 per channel wrong."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    from edgedistill.exporters.tflite.editing import Edit
    from edgedistill.exporters.tflite.pack import Packer
    from edgedistill.exporters.tflite.weights import packed
    from edgedistill.quant.activations import dynamic_linear
    from edgedistill.quant.grid import codes_of, scales_of

    torch.manual_seed(0)
    grid = WeightGrid(bits=4, granularity=granularity)
    weight, bias = torch.randn(32, 64), torch.randn(32)
    scales = scales_of(weight, grid, "bf16", "mse")
    codes = codes_of(weight, scales, grid)
    assert int(codes.min()) == -8
    x = torch.cat([torch.randn(60, 64) * 10, torch.rand(20, 64) + 1, -torch.rand(19, 64), torch.zeros(1, 64)])
    types, model = schema.TensorType, schema.ModelT(version=3, operatorCodes=[], buffers=[schema.BufferT()])
    edit, graph = Edit(schema, model), schema.SubGraphT(tensors=[], operators=[])
    quantization = schema.QuantizationParametersT(scale=scales.numpy(), zeroPoint=np.zeros(32, np.int64))
    given, out = (edit.add_tensor(graph, [100, width], types.FLOAT32) for width in (64, 32))
    if isinstance(granularity, PerGroup):
        groups = edit.add_buffer(scales.numpy().astype(np.float16))
        index = edit.add_tensor(graph, scales.shape, types.FLOAT16, groups)
        details = schema.BlockwiseQuantizationT(scales=index, zeroPoints=-1, blockSize=32)
        kind = schema.QuantizationDetails.BlockwiseQuantization
        quantization = schema.QuantizationParametersT(detailsType=kind, details=details)
    matrix = edit.add_tensor(graph, [32, 64], types.INT4, edit.add_buffer(packed(codes.numpy())), quantization)
    vector = edit.add_tensor(graph, [32], types.FLOAT32, edit.add_buffer(bias.numpy()))
    layer = edit.operator("FULLY_CONNECTED", 12, [given, matrix, vector], [out])
    layer.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    layer.builtinOptions = schema.FullyConnectedOptionsT(asymmetricQuantizeInputs=True)
    graph.operators, graph.inputs, graph.outputs = [layer], np.asarray([given]), np.asarray([out])
    model.subgraphs, model.metadata = [graph], []
    path = tmp_path / "int4.tflite"
    path.write_bytes(Packer().pack(model))

    def run(resolver: OpResolverType) -> torch.Tensor:
        interpreter = Interpreter(model_path=str(path), num_threads=1, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given, x.numpy())
        interpreter.invoke()
        return torch.from_numpy(interpreter.get_tensor(out))

    ours = dynamic_linear(x, codes.float(), scales, bias)
    assert torch.allclose(run(OpResolverType.AUTO), ours, rtol=1e-6, atol=1e-5)
    if isinstance(granularity, PerChannel):
        assert float((run(OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES) - ours).abs().max()) > 10
