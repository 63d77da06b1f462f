"""Quality and parity: what the exported file answers on real rows, against the frozen student it was made from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from edgedistill.errors import VerificationError
from edgedistill.quant.frozen import FrozenStudent
from edgedistill.quant.stored import QuantizedTensor
from edgedistill.specs import Parity


def code_difference(frozen: FrozenStudent, stored: dict[str, QuantizedTensor]) -> tuple[int, float]:
    """The largest difference of any integer code and of any scale between the file's own bytes and the student.

    Raises:
        VerificationError: if a tensor is missing in the file, has another shape or a scale that is not finite.
    """
    codes, scales = 0, 0.0
    for name, tensor in frozen.quantized.items():
        if name not in stored or stored[name].codes.shape != tensor.codes.shape:
            seen = stored[name].codes.shape if name in stored else "nothing"
            raise VerificationError(f"the file stores {seen} for {name!r}, expected {tensor.codes.shape}.")
        if stored[name].scales.shape != tensor.scales.shape or not np.isfinite(stored[name].scales).all():
            # compared here, as numpy would stretch one scale over all channels, and max() would pass over a nan
            raise VerificationError(f"the file's scales of {name!r} are not {tensor.scales.shape}, or not finite.")
        codes = max(codes, int(np.abs(stored[name].codes.astype(int) - tensor.codes.astype(int)).max()))
        scales = max(scales, float(np.abs(stored[name].scales - tensor.scales).max()))
    return codes, scales


def parity(
    reference: Float[np.ndarray, "rows classes"],
    file: Float[np.ndarray, "rows classes"],
    labels: Sequence[int],
    tensors: int,
    difference: tuple[int, float],
) -> Parity:
    """Compare logits row by row. `mean_kl` is KL(frozen student ‖ file) in nats.

    Raises:
        VerificationError: if the file answers something that is not a number.
    """
    broken = int((~np.isfinite(file)).any(-1).sum())
    if broken:
        raise VerificationError(f"the file answers {broken} of {len(file)} rows with logits that are not finite.")
    truth = np.asarray(labels)
    log_p, log_q = _log_softmax(reference), _log_softmax(file)
    return Parity(
        rows=len(reference),
        tensors=tensors,
        codes_max_difference=difference[0],
        scales_max_difference=difference[1],
        logits_max_abs=float(np.abs(reference - file).max()),
        logits_reference_max_abs=float(np.abs(reference).max()),
        mean_kl=max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean())),
        argmax_agreement=float((reference.argmax(-1) == file.argmax(-1)).mean()),
        accuracy_file=float((file.argmax(-1) == truth).mean()),
        accuracy_reference=float((reference.argmax(-1) == truth).mean()),
    )


def _log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
