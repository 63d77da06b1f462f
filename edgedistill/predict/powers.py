"""The second opinion on a CPU's latency: a product of powers beside the sum of terms; their geometric mean is forecast.

    ms = speed * sqrt(sum of coefficient x amount  *  product of (amount + least) ^ exponent)

A sum says that each operation costs the same in every model, a product that large models are no scaled small ones. The
errors of the two differ, so their mean errs less than either. No exponent is negative, so more work is never faster.
Both are 1 at typical work, so that the speed of a device means the same with and without the product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def outside(found: Mapping[str, Any], each: Sequence[float], amounts: Sequence[float]) -> float:
    """How far the amounts outside the range of their class move the forecast, log: both ways, added.

    So a term that is next to nothing beside the others widens nothing, however far outside its range it is.
    """
    inside = [
        min(max(now, low / 1.01), high * 1.01) if now > 0 and high > 0 else now
        for now, (low, high) in zip(amounts, found["range"], strict=True)
    ]

    most, least = ([end(pair) for pair in zip(amounts, inside, strict=True)] for end in (max, min))
    return log_told(found, each, most) - log_told(found, each, least)


def log_told(found: Mapping[str, Any], each: Sequence[float], amounts: Sequence[float]) -> float:
    """The forecast, log, up to the speed of the device."""
    return log(bend(found, each, amounts) * sum(k * value for k, value in zip(each, amounts, strict=True)))


def dearest_depthwise(
    found: Mapping[str, Any],
    each: Sequence[float],
    amounts_of: Callable[[float], Sequence[float]],
    given: float,
    every: float,
) -> float:
    """How many of the `given` depthwise multiply-accumulates, of `every` one, count as such; the others as regular.

    Beyond the share that was measured (a fifth of all) the forms would tell less time the fewer regular ones
    are left, next to none of a model that has none. A depthwise one is never cheaper than a regular one, so the count
    stops where the forecast is the highest; it is concave (sums, roots and logs of sums), so there is one such place.
    """
    if "depthwise_macs_ms" not in found["terms"] or given <= 0:
        return given

    def told(count: float) -> float:
        return log_told(found, each, amounts_of(count))

    low, high = 0.0, every  # not `given`: beyond the highest place all shares are told the same, to the last digit
    if told(given) >= told((1 - 1e-6) * given):
        return given
    for _ in range(60):
        one, two = low + (high - low) / 3, high - (high - low) / 3
        low, high = (one, high) if told(one) < told(two) else (low, two)
    return min((low + high) / 2, given)
