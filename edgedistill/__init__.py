"""edgedistill: from a big model, a phone and data to a small quantized student that provably meets the budget."""

__version__ = "0.1.0"
