"""The network of the `vit` family, in plain torch: the float function that training, freezing and exports share."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgedistill.data.tensors import Outputs
from edgedistill.students._transformer import AfterGelu, Attention, Factor, Mean, Norm, score_factor, value_factor
from edgedistill.students.vit import Config

EPSILON = 1e-6


class Embeddings(nn.Module):
    """Patches of an image, each mapped by one linear layer, plus a learned position.

    The layer has no bias of its own: each patch's position adds one already, and converters would merge the two.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.side = config.patch
        self.patch = nn.Linear(3 * config.patch**2, config.width, bias=False)
        self.position = nn.Parameter(torch.zeros(config.patches, config.width))

    def forward(self, pixels: Float[Tensor, "batch side side 3"]) -> Float[Tensor, "batch patches width"]:
        """A patch's values are row by row, then column, then colour; patches are in the order of reading.

        Two rows of pixels never share a patch row, so bands of patches can stand on the batch axis: every tensor has
        at most four axes, which is what runtimes have fast kernels for. A linear layer rather than a convolution, so
        that its input can be quantized row by row at run time.
        """
        batch, side = pixels.shape[0], self.side
        across = pixels.shape[2] // side
        bands = pixels.reshape(batch * across, side, across, side * 3).transpose(1, 2)
        out: Tensor = self.patch(bands.reshape(batch, across**2, side**2 * 3)) + self.position
        return out


class Layer(nn.Module):
    """Self-attention and feed-forward, each after a layer norm and added to what came in."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.heads, self.head_width = config.heads, width // config.heads
        self.attention_norm = Norm(width, eps=EPSILON)
        self.query = Factor(width, width, score_factor(self.head_width))
        self.key = Factor(width, width, score_factor(self.head_width))
        self.value = Factor(width, width, value_factor(config.patches))
        self.attention = Attention(config.heads, self.head_width)
        self.output = nn.Linear(width, width)
        self.ffn_norm = Norm(width, eps=EPSILON)
        self.up = nn.Linear(width, config.ffn)
        self.down = AfterGelu(config.ffn, width, "up")

    def forward(self, x: Float[Tensor, "batch patches width"]) -> Float[Tensor, "batch patches width"]:
        """One encoder layer."""
        y = self.attention_norm(x)
        mixed = self.attention(self.query(y), self.key(y), self.value(y))
        x = x + self.output(mixed)
        out: Tensor = x + self.down(nn.functional.gelu(self.up(self.ffn_norm(x))))
        return out


class VitClassifier(nn.Module):
    """Normalised pixels, channels last, to `Outputs`. Dropout-free, as every student."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = Norm(config.width, eps=EPSILON)
        self.pool = Mean(config.patches)
        self.classifier = nn.Linear(config.width, config.classes)

    def forward(self, pixels: Float[Tensor, "batch side side 3"]) -> Outputs:
        """`pixels` as after normalisation."""
        x = self.embeddings(pixels)
        for layer in self.layers:
            x = layer(x)
        pooled = self.pool(self.norm(x))
        return Outputs(self.classifier(pooled), pooled)


def build(config: Config) -> VitClassifier:
    """A student with random weights: linear layers normal with deviation 0.7/sqrt(inputs), positions 0.02, biases 0.

    The deviation is that of the `bert` family, for the same reason.
    """
    model = VitClassifier(config)
    nn.init.normal_(model.embeddings.position, std=0.02)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.7 / math.sqrt(module.in_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
