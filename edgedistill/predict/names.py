"""Names of devices and chips as people write them: which ones mean the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache

_MAKERS = "qualcomm|rockchip|mediatek|samsung|hisilicon|broadcom|amlogic|allwinner|unisoc"
# What chips are called by their makers' numbers.
NUMBERS = {
    "sm8850": "snapdragon 8 elite gen 5", "sm8750": "snapdragon 8 elite", "sm8650": "snapdragon 8 gen 3",
    "sm8550": "snapdragon 8 gen 2", "sm8450": "snapdragon 8 gen 1", "sm8350": "snapdragon 888",
    "sm8250": "snapdragon 865", "sm8150": "snapdragon 855", "sdm845": "snapdragon 845", "sdm660": "snapdragon 660",
    "mt6989": "dimensity 9300", "gs101": "google tensor g1", "gs201": "google tensor g2", "rk3588s": "rk3588",
    "x1e80100": "snapdragon x elite", "x1e78100": "snapdragon x elite",
}  # fmt: skip
BRANDS = ("", "samsung", "google", "apple", "nvidia", "xiaomi")  # that a name may leave out
_FAMILY = re.compile(r"snapdragon|exynos|dimensity|helio|tensor|kirin|unisoc|bionic")


def soc_key(text: str) -> str:
    """`Snapdragon 8 Gen 2 for Galaxy` -> `snapdragon 8 gen 2`: equal chips have equal keys; the first of several."""
    text = re.split(r" / | \(|,", text.lower())[0]
    text = re.sub(rf"\b({_MAKERS}|for galaxy|mobile platform|apple (?=a\d+\b))", "", text).strip()
    text = re.sub(r"^(google )?tensor", "google tensor", text)
    return re.sub(r"^a(1\d|\d)( pro)?( bionic)?$", lambda m: f"a{m[1]}{m[2] or ''} bionic", text)


def asked_chip(text: str) -> str:
    """The key of a chip as a person writes it: `SM8650-AB` and `Snapdragon® 8Gen3` are a Snapdragon 8 Gen 3."""
    text = re.sub(r"[®™]|\((?:r|tm)\)", "", text.lower()).strip()
    text = re.sub(r"(?<=\d)\s*gen\s*(?=\d)", " gen ", re.sub(r"^sd\s?(?=\d)", "snapdragon ", text))
    key = " ".join(soc_key(text).split())
    return NUMBERS.get(re.sub(r"-[a-z]{2}$", "", key), key)


def other_chip(name: str, soc: str) -> str:
    """What a name in brackets says of the chip, where `soc` is another: `Galaxy S24 (Exynos)`; else nothing."""
    for said in re.findall(r"\(([^)]*)\)", name):
        chip = asked_chip(said)
        families = _FAMILY.findall(chip)
        if families and not (chip in soc or (chip == families[0] and families[0] in soc)):
            return str(said)
    return ""


@cache
def fold(name: str) -> str:
    """The name without case, spaces and signs."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def bare(name: str) -> str:
    """As `fold`, without what stands in brackets."""
    return fold(re.sub(r"\(.*\)", "", name))


def meant(name: str, every: Sequence[str], chip: Callable[[str], str]) -> tuple[str, ...]:
    """Those of `every` that a name means; several where they have different chips and nothing tells which.

    What stands in brackets tells models of one name apart, so it is left out only where the whole name is nobody's.
    """
    if name in every:
        return (name,)
    whole = {fold(one.split(",")[0]): one for one in reversed(every)}  # `OrangePi5, Rockchip RK3588s`
    whole |= {fold(one): one for one in every}
    if found := next((whole[key] for brand in BRANDS if (key := brand + fold(name)) in whole), None):
        return (found,)
    wanted = [brand + bare(name) for brand in BRANDS] if bare(name) else []
    near = next((some for key in wanted if (some := [one for one in every if bare(one) == key])), [])
    return tuple({chip(one): one for one in near}.values())


def states_int8(soc: str) -> bool:
    """Whether Apple states the int8 rate of a chip's Neural Engine: since A17 and M4, twice that of Core ML's fp16."""
    return re.match(r"a(1[7-9]|[2-9]\d)( pro)? bionic|(apple )?m([4-9]|\d\d)\b", soc) is not None


def vector_only(soc: str) -> bool:
    """Whether a Qualcomm NPU has no matrix unit yet: Hexagon before v68, as of Snapdragon 870, 768G and older ones."""
    return re.match(r"snapdragon (8[0-7]\d|7[0-6]\d|[46]\d\d)|q[cr][sb](8250|5165)|sm8[12]50", soc) is not None
