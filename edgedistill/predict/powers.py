"""The second opinion on a CPU's latency: a product of powers beside the sum of terms; their geometric mean is forecast.

    ms = speed * sqrt(sum of coefficient x amount  *  product of (amount + least) ^ exponent)

A sum says that each operation costs the same in every model, a product that large models are no scaled small ones. The
errors of the two differ, so their mean errs less than either. No exponent is negative, so more work is never faster.
Both are 1 at typical work, so that the speed of a device means the same with and without the product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log
from typing import Any

SHARE = 0.5  # of the product in the log of the forecast: a plain mean, not tuned


def bend(found: Mapping[str, Any], coefficients: Sequence[float], amounts: Sequence[float]) -> float:
    """The factor on every term of a class; 1 where the class has no powers.

    `coefficients` are those of the terms on this device, up to one factor.
    """
    powers = found["powers"]
    if not powers:
        return 1.0
    product, now, typical = 0.0, 0.0, 0.0
    columns = (coefficients, amounts, powers["exponents"], powers["least"], powers["typical"])
    for coefficient, amount, exponent, least, usual in zip(*columns, strict=True):
        product += exponent * log((amount + least) / (usual + least))
        now += coefficient * amount
        typical += coefficient * usual
    return exp(SHARE * (product - log(now / typical)))
