"""Stored tensors of the layers that families have in common."""

from __future__ import annotations

from edgedistill.students import StoredTensor


def linear_tensors(name: str, out_features: int, in_features: int) -> list[StoredTensor]:
    """A weight and a bias."""
    return [
        StoredTensor(f"{name}.weight", (out_features, in_features), "linear"),
        StoredTensor(f"{name}.bias", (out_features,), "float", ("bias",)),
    ]


def norm_tensors(name: str, width: int, *parts: str) -> list[StoredTensor]:
    """The gains, which bring these `parts` of the graph, and the biases of a layer norm."""
    return [
        StoredTensor(f"{name}.weight", (width,), "float", parts),
        StoredTensor(f"{name}.bias", (width,), "float"),
    ]
