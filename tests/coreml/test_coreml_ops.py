"""Each operation on its own: a torch module through coremltools, evaluated from the file, against torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coreml_models import convert
from torch import nn
from torch.nn import functional as F

from edgedistill.coreml import Evaluator, load


class Fn(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


def floats(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    size = int(np.prod(shape))
    # spread over the range without ties, in no order
    values = np.linspace(low, high, size, dtype=np.float64)
    return np.random.default_rng(size).permutation(values).astype(np.float32).reshape(shape)


def ints(*shape: int, low: int = 0, high: int = 9) -> np.ndarray:
    return np.random.default_rng(3).integers(low, high, shape, dtype=np.int32)


X = floats(2, 6, 5)
IMAGE = floats(2, 4, 9, 8)
POSITIVE = floats(2, 6, 5, low=0.1, high=4.0)
UNIT = floats(2, 6, 5, low=-0.95, high=0.95)

OPS: dict[str, tuple[nn.Module | Callable[..., Any], tuple[np.ndarray, ...]]] = {
    # each element
    "abs": (torch.abs, (X,)),
    "acos": (torch.acos, (UNIT,)),
    "asin": (torch.asin, (UNIT,)),
    "atan": (torch.atan, (X,)),
    "atanh": (torch.atanh, (UNIT,)),
    "ceil": (torch.ceil, (X,)),
    "clamp": (lambda x: x.clamp(-0.5, 1.25), (X,)),
    "clamp_min": (lambda x: x.clamp(min=0.25), (X,)),
    "cos": (torch.cos, (X,)),
    "cosh": (torch.cosh, (X,)),
    "erf": (torch.erf, (X,)),
    "exp": (torch.exp, (X,)),
    "exp2": (torch.exp2, (X,)),
    "floor": (torch.floor, (X,)),
    "log": (torch.log, (POSITIVE,)),
    "log2": (torch.log2, (POSITIVE,)),
    "neg": (torch.neg, (X,)),
    "round": (torch.round, (floats(2, 9, low=-2, high=2),)),
    "rsqrt": (torch.rsqrt, (POSITIVE,)),
    "sign": (torch.sign, (X,)),
    "sin": (torch.sin, (X,)),
    "sinh": (torch.sinh, (X,)),
    "sqrt": (torch.sqrt, (POSITIVE,)),
    "square": (torch.square, (X,)),
    "tan": (torch.tan, (UNIT,)),
    "tanh": (torch.tanh, (X,)),
    # activations
    "celu": (F.elu, (X,)),
    "gelu": (F.gelu, (X,)),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), (X,)),
    "glu": (lambda x: F.glu(x, 1), (X,)),
    "hardsigmoid": (F.hardsigmoid, (X,)),
    "hardswish": (F.hardswish, (X,)),
    "hardtanh": (lambda x: F.hardtanh(x, -0.3, 0.7), (X,)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), (X,)),
    "log_softmax": (lambda x: F.log_softmax(x, -1), (X,)),
    "mish": (F.mish, (X,)),
    "prelu": (nn.PReLU(6, init=0.3), (X,)),
    "relu": (torch.relu, (X,)),
    "relu6": (lambda x: F.relu6(5 * x), (X,)),
    "sigmoid": (torch.sigmoid, (X,)),
    "silu": (F.silu, (X,)),
    "softmax": (lambda x: torch.softmax(x, 1), (X,)),
    "softplus": (F.softplus, (X,)),
    "softsign": (F.softsign, (X,)),
    # two operands
    "add": (torch.add, (X, floats(6, 1))),
    "add_scalar": (lambda x: x + 0.7, (X,)),
    "div": (torch.div, (X, floats(6, 1, low=1, high=3))),
    "floor_divide": (lambda x, y: torch.div(x, y, rounding_mode="floor"), (X, floats(6, 1, low=0.5, high=3))),
    "maximum": (torch.maximum, (X, floats(6, 1))),
    "minimum": (torch.minimum, (X, floats(6, 1))),
    "mul": (torch.mul, (X, floats(5))),
    "pow": (lambda x: x**3, (X,)),
    "pow_half": (lambda x: x**0.5, (POSITIVE,)),
    "pow_tensor": (torch.pow, (POSITIVE, floats(5))),
    "remainder": (torch.remainder, (X, floats(6, 1, low=0.5, high=3))),
    "rsub": (lambda x: 1 - x, (X,)),
    "sub": (torch.sub, (X, floats(5))),
    "int_add": (lambda x, y: x + y, (ints(3, 4), ints(4))),
    "int_floor_div": (lambda x, y: x // y, (ints(3, 4, low=-9), ints(4, low=2))),
    "int_remainder": (lambda x, y: torch.remainder(x, y), (ints(3, 4, low=-9), ints(4, low=2))),
    # comparisons
    "eq": (lambda x: (x == 4).float(), (ints(3, 4),)),
    "ge": (lambda x: (x >= 0.3).float(), (X,)),
    "gt": (lambda x, y: (x > y).float(), (X, floats(5))),
    "le": (lambda x: (x <= 0.3).float(), (X,)),
    "logical_and": (lambda x: torch.logical_and(x > 0, torch.logical_not(x > 1)).float(), (X,)),
    "logical_or": (lambda x: torch.logical_or(x > 1, x < -1).float(), (X,)),
    "lt": (lambda x, y: (x < y).float(), (X, floats(5))),
    "masked_fill": (lambda x: x.masked_fill(x > 0.5, -7.0), (X,)),
    "ne": (lambda x: (x != 4).float(), (ints(3, 4),)),
    "where": (lambda x, y: torch.where(x > 0, x, y), (X, floats(2, 6, 5))),
    "xor": (lambda x: torch.logical_xor(x > 0, x > 1).float(), (X,)),
    # reductions
    "amax": (lambda x: x.amax((0, 2)), (X,)),
    "amin": (lambda x: x.amin(1, keepdim=True), (X,)),
    "argmax": (lambda x: x.argmax(1), (X,)),
    "argmin": (lambda x: x.argmin(-1, keepdim=True), (X,)),
    "argsort": (lambda x: torch.argsort(x, 1, descending=True), (X,)),
    "cumsum": (lambda x: x.cumsum(1), (X,)),
    "logsumexp": (lambda x: torch.logsumexp(x, 1), (X,)),
    "mean": (lambda x: x.mean((0, 2), keepdim=True), (X,)),
    "mean_all": (lambda x: x.mean(), (X,)),
    "norm": (lambda x: torch.linalg.vector_norm(x, dim=-1), (X,)),
    "norm_one": (lambda x: x.norm(p=1, dim=-1), (X,)),
    "std": (lambda x: x.std(1), (X,)),
    "sum": (lambda x: x.sum(1), (X,)),
    "topk": (lambda x: torch.topk(x, 3, 1), (X,)),
    "topk_least": (lambda x: torch.topk(x, 2, -1, largest=False), (X,)),
    "var": (lambda x: x.var((1, 2), unbiased=False), (X,)),
    # products
    "addmm": (lambda x, y, z: torch.addmm(x, y, z), (floats(3, 5), floats(3, 4), floats(4, 5))),
    "baddbmm": (lambda x, y, z: torch.baddbmm(x, y, z), (floats(2, 3, 5), floats(2, 3, 4), floats(2, 4, 5))),
    "bmm": (torch.bmm, (floats(2, 3, 4), floats(2, 4, 5))),
    "einsum": (lambda x, y: torch.einsum("bnqd,bnkd->bnqk", x, y), (floats(2, 3, 4, 5), floats(2, 3, 6, 5))),
    "einsum_native": (lambda x, y: torch.einsum("nchw,nwhu->nchu", x, y), (floats(2, 3, 4, 5), floats(2, 5, 4, 6))),
    "linear": (nn.Linear(5, 7), (X,)),
    "linear_no_bias": (nn.Linear(5, 7, bias=False), (X,)),
    "matmul": (torch.matmul, (floats(2, 3, 4, 5), floats(3, 5, 6))),
    "matmul_transposed": (lambda x, y: x @ y.transpose(-1, -2), (floats(2, 3, 5), floats(2, 4, 5))),
    "outer": (torch.outer, (floats(3), floats(4))),
    # convolutions
    "conv1d": (nn.Conv1d(6, 4, 3, padding=1), (X,)),
    "conv2d": (nn.Conv2d(4, 6, 3), (IMAGE,)),
    "conv2d_depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), (IMAGE,)),
    "conv2d_dilated": (nn.Conv2d(4, 6, 3, padding=2, dilation=2), (IMAGE,)),
    "conv2d_groups": (nn.Conv2d(4, 6, (3, 1), stride=(1, 2), groups=2), (IMAGE,)),
    "conv2d_same": (nn.Conv2d(4, 6, 3, padding="same"), (IMAGE,)),
    "conv2d_same_even": (nn.Conv2d(4, 6, (4, 2), padding="same"), (IMAGE,)),
    "conv2d_strided": (nn.Conv2d(4, 6, 5, stride=2, padding=2), (IMAGE,)),
    "conv2d_uneven": (
        lambda x: F.conv2d(F.pad(x, (1, 2, 3, 0)), torch.linspace(-1, 1, 3 * 4 * 9).reshape(3, 4, 3, 3).to(x.dtype)),
        (IMAGE,),
    ),
    "conv3d": (nn.Conv3d(2, 3, 3, padding=1), (floats(1, 2, 4, 5, 6),)),
    "conv_transpose1d": (nn.ConvTranspose1d(6, 4, 3, stride=2, padding=1), (X,)),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 3, 3, stride=2), (IMAGE,)),
    "conv_transpose2d_groups": (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (IMAGE,)),
    "conv_transpose2d_output_padding": (nn.ConvTranspose2d(4, 3, 3, 2, padding=1, output_padding=1), (IMAGE,)),
    # normalisation
    "batch_norm": (nn.BatchNorm2d(4), (IMAGE,)),
    "group_norm": (nn.GroupNorm(2, 4), (IMAGE,)),
    "instance_norm": (nn.InstanceNorm2d(4, affine=True), (IMAGE,)),
    "layer_norm": (nn.LayerNorm(5), (X,)),
    "layer_norm_two_axes": (nn.LayerNorm((6, 5)), (X,)),
    "local_response_norm": (nn.LocalResponseNorm(3, alpha=0.1, k=2.0), (IMAGE,)),
    "normalize": (lambda x: F.normalize(x, dim=-1), (X,)),
    # pooling
    "adaptive_avg_pool": (nn.AdaptiveAvgPool2d(1), (IMAGE,)),
    "adaptive_max_pool": (nn.AdaptiveMaxPool2d(1), (IMAGE,)),
    "avg_pool1d": (nn.AvgPool1d(2), (X,)),
    "avg_pool2d": (nn.AvgPool2d(3, stride=2), (IMAGE,)),
    "avg_pool2d_ceil": (nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True), (IMAGE,)),
    "avg_pool2d_exclude": (nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), (IMAGE,)),
    "avg_pool2d_padded": (nn.AvgPool2d(3, stride=2, padding=1), (IMAGE,)),
    "max_pool1d": (nn.MaxPool1d(3, padding=1), (X,)),
    "max_pool2d": (nn.MaxPool2d(3, stride=2), (IMAGE,)),
    "max_pool2d_ceil": (nn.MaxPool2d(2, stride=2, ceil_mode=True), (IMAGE,)),
    "max_pool2d_ceil_padded": (nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), (floats(1, 2, 8, 7) - 5,)),
    "max_pool2d_ceil_dropped": (nn.MaxPool2d(2, stride=3, padding=1, ceil_mode=True), (floats(1, 2, 5, 5) - 5,)),
    "max_pool2d_padded": (nn.MaxPool2d((3, 2), stride=(2, 1), padding=(1, 0)), (floats(1, 2, 8, 7) - 5,)),
    # shapes
    "cat": (lambda x, y: torch.cat([x, y, x], 1), (X, floats(2, 3, 5))),
    "chunk": (lambda x: torch.chunk(x, 3, 1), (X,)),
    "expand": (lambda x: x.expand(-1, 4, -1) + 0.5, (floats(2, 1, 5),)),
    "flatten": (lambda x: x.flatten(1) * 2, (X,)),
    "flip": (lambda x: x.flip(1, 2), (X,)),
    "permute": (lambda x: x.permute(2, 0, 1) + 1, (X,)),
    "repeat": (lambda x: x.repeat(2, 1, 3), (X,)),
    "reshape": (lambda x: x.reshape(2, -1, 3) + 1, (X,)),
    "select": (lambda x: x[:, 2], (X,)),
    "select_last": (lambda x: x[:, -1], (X,)),
    "slice": (lambda x: x[:, 1:5:2, :-1], (X,)),
    "slice_write": (lambda x: torch.cat([x[:, :2], x[:, 2:] * 2], 1), (X,)),
    "split": (lambda x: torch.split(x, [1, 3, 2], 1), (X,)),
    "squeeze": (lambda x: x.squeeze(1) * 2, (floats(2, 1, 5),)),
    "stack": (lambda x, y: torch.stack([x, y], 1), (X, floats(2, 6, 5))),
    "transpose": (lambda x: x.transpose(1, 2) + 1, (X,)),
    "tril": (torch.tril, (floats(5, 5),)),
    "triu": (lambda x: torch.triu(x, 1), (floats(4, 5),)),
    "unbind": (lambda x: torch.unbind(x, 1), (X,)),
    "unsqueeze": (lambda x: x.unsqueeze(1) * 2, (X,)),
    # space
    "pad": (lambda x: F.pad(x, (1, 2, 3, 0), value=0.5), (IMAGE,)),
    "pad_reflect": (lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"), (IMAGE,)),
    "pad_replicate": (lambda x: F.pad(x, (1, 2, 3, 0), mode="replicate"), (IMAGE,)),
    "pixel_shuffle": (nn.PixelShuffle(2), (IMAGE,)),
    "pixel_unshuffle": (nn.PixelUnshuffle(2), (floats(1, 2, 6, 8),)),
    "upsample_bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (IMAGE,)),
    "upsample_bilinear_corners": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
        (IMAGE,),
    ),
    "upsample_bilinear_size": (lambda x: F.interpolate(x, size=(13, 11), mode="bilinear"), (IMAGE,)),
    "upsample_nearest": (lambda x: F.interpolate(x, scale_factor=3, mode="nearest"), (IMAGE,)),
    # places
    "embedding": (nn.Embedding(9, 4), (ints(2, 5),)),
    "gather": (lambda x, i: torch.gather(x, 1, i.long()), (X, ints(2, 3, 5, high=6))),
    "index_put": (
        lambda x, i, y: x.index_put((i.long(),), y),
        (floats(9, 3), np.array([4, 2], np.int32), floats(2, 3)),
    ),
    "index_select": (lambda x: torch.index_select(x, 1, torch.tensor([4, 0, 4])), (X,)),
    "index_tensor": (lambda x, i: x[:, i.long()], (X, ints(3, high=6))),
    "index_two": (lambda x, i: x[torch.arange(2), i.long()], (X, ints(2, high=6))),
    "one_hot": (lambda i: F.one_hot(i.long(), 9).float(), (ints(2, 5),)),
    "scatter": (
        lambda x, i, y: x.scatter(1, i.long(), y),
        (floats(2, 6), np.array([[4, 1], [0, 5]], np.int32), floats(2, 2)),
    ),
    "scatter_add": (
        lambda x, i, y: x.scatter_add(1, i.long(), y),
        (floats(2, 6), np.array([[4, 4], [0, 5]], np.int32), floats(2, 2)),
    ),
    # constants
    "arange": (lambda x: x + torch.arange(5), (X,)),
    "full": (lambda x: x + torch.full((5,), 0.25), (X,)),
    "ones_like": (lambda x: x + torch.ones_like(x), (X,)),
    # attention
    "attention": (F.scaled_dot_product_attention, (floats(1, 2, 4, 8), floats(1, 2, 6, 8), floats(1, 2, 6, 8))),
    "attention_mask": (
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m.to(q.dtype)),
        (floats(1, 2, 4, 8), floats(1, 2, 6, 8), floats(1, 2, 6, 8), floats(1, 1, 4, 6, low=-20, high=0)),
    ),
    "attention_bool_mask": (
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m > 0),
        (floats(1, 2, 4, 8), floats(1, 2, 6, 8), floats(1, 2, 6, 8), np.tri(4, 6, 2, np.int32)),
    ),
}


def expected(module: nn.Module, feeds: tuple[np.ndarray, ...], dtype: torch.dtype) -> list[np.ndarray]:
    values = [torch.from_numpy(feed.copy()) for feed in feeds]
    with torch.no_grad():
        result = module.to(dtype)(*(value.to(dtype) if value.is_floating_point() else value for value in values))
    return [value.numpy() for value in (result if isinstance(result, tuple | list) else (result,))]


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
@pytest.mark.parametrize("name", OPS)
def test_an_operation_gives_what_torch_gives(name: str, target: str, tmp_path: Path) -> None:
    made, feeds = OPS[name]
    torch.manual_seed(5)
    module = (made if isinstance(made, nn.Module) else Fn(made)).eval()
    fed = {f"in{index}": feed for index, feed in enumerate(feeds)}
    program = load(convert(module, fed, tmp_path / "op.mlpackage", target=target))
    for precision, dtype, tolerance in (("fp32", torch.float32, 3e-6), ("fp64", torch.float64, 3e-7)):
        wanted = expected(module, feeds, dtype)
        module.float()
        got = list(Evaluator(program, precision).predict(fed).values())
        assert len(got) == len(wanted)
        for ours, theirs in zip(got, wanted, strict=True):
            assert ours.shape == theirs.shape or ours.size == theirs.size == 1
            scale = max(1.0, float(np.abs(theirs).max()))
            assert np.abs(ours - theirs).max() <= tolerance * scale
