"""A student in words."""

from __future__ import annotations

from typing import Any

from edgedistill.specs import Candidate


def describe(candidate: Candidate) -> str:
    """The configuration on one line, and how it is stored where that is not as the profile says."""
    text = ", ".join(f"{key}={_short(value)}" for key, value in candidate.config.items())
    return text if candidate.scheme is None else f"{text}, {_stored(candidate)}"


def _short(value: Any) -> str:
    if isinstance(value, list):  # stages of a convolutional network: width x repeats
        return "[" + " ".join(f"{one['width']}x{one['repeats']}" if isinstance(one, dict) else str(one)
                              for one in value) + "]"  # fmt: skip
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _stored(candidate: Candidate) -> str:
    scheme = candidate.scheme
    assert scheme is not None
    small = ["embeddings"] * (scheme.embeddings.bits == 4) + ["all layers"] * (scheme.weights.bits == 4)
    layers = {name.split(".")[1] for name, grid in scheme.layers.items() if grid.bits == 4 and "." in name}
    small += [f"layers {', '.join(sorted(layers, key=int))}"] if layers and all(map(str.isdecimal, layers)) else []
    return f"{' and '.join(small) or scheme.label} in 4 bits" if small else scheme.label
