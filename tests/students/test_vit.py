"""The vit family against the Vision Transformer of transformers, and the order of its patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from learning import losses_of, shaded
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import ViTConfig, ViTModel

from edgedistill.errors import SpecError
from edgedistill.students import vit
from edgedistill.students.vit.module import Embeddings, VitClassifier, build

TINY = vit.TINY
NAMES = {"query": "attention.q_proj", "key": "attention.k_proj", "value": "attention.v_proj"}
NAMES |= {"output": "attention.o_proj", "attention_norm": "layernorm_before", "ffn_norm": "layernorm_after"}
NAMES |= {"up": "mlp.fc1", "down": "mlp.fc2"}


def pixels(config: vit.Config = TINY, count: int = 3) -> Tensor:
    (signature,) = vit.signatures(config, ())
    random = np.random.default_rng(1)
    return torch.from_numpy(np.concatenate([vit.sample(config, signature, random)["pixels"] for _ in range(count)]))


def student(config: vit.Config = TINY) -> VitClassifier:
    torch.manual_seed(0)
    model = build(config).eval()
    with torch.no_grad():  # norms and biases that are not neutral
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model


def copied(source: VitClassifier) -> ViTModel:
    """The same weights in the network of transformers."""
    config = source.config
    about = ViTConfig(
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.ffn,
        image_size=config.image_size,
        patch_size=config.patch,
        layer_norm_eps=1e-6,
        attn_implementation="eager",
    )
    body = ViTModel(about, add_pooling_layer=False).eval()
    kernel = source.embeddings.patch.weight.detach().view(config.width, config.patch, config.patch, 3)
    projection = body.embeddings.patch_embeddings.projection
    projection.load_state_dict({"weight": kernel.permute(0, 3, 1, 2), "bias": torch.zeros(config.width)})
    for ours, theirs in zip(source.layers, body.layers, strict=True):
        for one, other in NAMES.items():
            theirs.get_submodule(other).load_state_dict(ours.get_submodule(one).state_dict())
    body.layernorm.load_state_dict(source.norm.state_dict())
    return body


@pytest.mark.parametrize("config", [TINY, TINY.model_copy(update={"layers": 3, "heads": 4, "patch": 8})])
def test_the_network_is_the_vit_of_transformers_but_for_the_class_token(config: vit.Config) -> None:
    ours, images = student(config), pixels(config)
    theirs = copied(ours)
    with torch.no_grad():
        # their patches, without the class token that goes in front of them
        x = theirs.embeddings.patch_embeddings(images.permute(0, 3, 1, 2)) + ours.embeddings.position
        for layer in theirs.layers:
            x = layer(x)
        pooled = theirs.layernorm(x).mean(1)
        out = ours(images)
    torch.testing.assert_close(out.pooled, pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.logits, ours.classifier(pooled), rtol=0, atol=1e-5)
    assert float(pooled.std()) > 0.1


def test_patches_are_in_the_order_of_reading_and_so_are_their_pixels() -> None:
    config = vit.Config(image_size=8, patch=2, layers=1, width=12, heads=1, ffn=4)
    embeddings = Embeddings(config)
    embeddings.patch.load_state_dict({"weight": torch.eye(12)})
    image = torch.arange(8 * 8 * 3.0).view(1, 8, 8, 3)
    with torch.no_grad():
        found = embeddings(torch.cat([image, -image]))
    for row in range(4):
        for column in range(4):
            patch = image[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten()
            assert torch.equal(found[0, 4 * row + column], patch)
            assert torch.equal(found[1, 4 * row + column], -patch)


def test_no_tensor_has_more_than_four_axes() -> None:
    ranks = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            ranks.update(
                item.dim() for item in (out if isinstance(out, tuple | list) else [out]) if hasattr(item, "dim")
            )
            return out

    model, images = student(), pixels(count=1)
    with torch.no_grad(), Watch():
        model(images)
    assert max(ranks) == 4


def test_the_place_of_a_patch_matters_and_the_batch_does_not() -> None:
    model, images = student(), pixels()
    turned = images.flip(1)
    with torch.no_grad():
        together = model(images).logits
        assert not torch.allclose(model(turned).logits, together, atol=1e-4)
        for row in range(len(images)):
            torch.testing.assert_close(model(images[row : row + 1]).logits[0], together[row], rtol=0, atol=1e-6)


def test_a_student_learns() -> None:
    torch.manual_seed(0)
    model = build(TINY).train()
    losses = losses_of(model, shaded(pixels(count=1)), steps=40)
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"heads": 3}, "not a multiple of heads = 3"),
        ({"patch": 5}, "not a multiple of patch = 5"),
        ({"image_size": 1024, "patch": 2}, "262144 patches"),
        ({"width": 4}, "greater than or equal to 8"),
        ({"depth": 4}, "unknown key 'depth'"),
    ],
)
def test_sizes_that_cannot_be_are_refused(change: dict[str, int], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        vit.Config.decode(TINY.model_dump() | change, "here")
