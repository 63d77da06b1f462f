"""The grid: fake-quant in training, freezing to integer codes, and the frozen student that every export starts from."""

from edgedistill.quant.fake import freeze_observers, prepare
from edgedistill.quant.frozen import FrozenStudent, freeze
from edgedistill.quant.observers import RangeRule
from edgedistill.quant.scales import ScaleRule, rule_of
from edgedistill.quant.stored import QuantizedTensor

__all__ = [
    "FrozenStudent",
    "QuantizedTensor",
    "RangeRule",
    "ScaleRule",
    "freeze",
    "freeze_observers",
    "prepare",
    "rule_of",
]
