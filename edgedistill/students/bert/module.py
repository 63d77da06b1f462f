"""The network of the `bert` family, in plain torch: the float function that training, freezing and exports share."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edgedistill.data.tensors import Outputs
from edgedistill.students._points import Addend
from edgedistill.students._transformer import AfterGelu, Attention, Factor, Norm, score_factor, value_factor
from edgedistill.students.bert import Config


class Embeddings(nn.Module):
    """Word plus position embedding, normalised. BERT's constant segment embedding is folded into the positions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Parameter(torch.zeros(config.max_length, config.width))
        self.norm = Norm(config.width, eps=1e-12)

    def forward(
        self, input_ids: Int[Tensor, "batch length"], mask: Float[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length width"]:
        """Embed token ids; where a `mask` is 0, as the first token of the text."""
        x = self.word(input_ids) + self.position[: input_ids.shape[1]]
        out: Tensor = self.norm(x if mask is None else torch.where(mask[:, :, None] > 0, x, x[:, :1]))
        return out


class Layer(nn.Module):
    """Self-attention and feed-forward, each followed by an add and a layer norm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.heads, self.head_width = config.heads, width // config.heads
        self.query = Factor(width, width, score_factor(self.head_width))
        self.key = Factor(width, width, score_factor(self.head_width))
        self.value = Factor(width, width, value_factor(config.max_length))
        self.attention = Attention(config.heads, self.head_width)
        self.output = nn.Linear(width, width)
        self.attention_norm = Norm(width, eps=1e-12)
        self.up = nn.Linear(width, config.ffn)
        self.down = AfterGelu(config.ffn, width, "up")
        self.ffn_norm = Norm(width, eps=1e-12)

    def forward(
        self, x: Float[Tensor, "batch length width"], bias: Float[Tensor, "batch 1 1 length"]
    ) -> Float[Tensor, "batch length width"]:
        """One encoder layer; `bias` is 0 at tokens and very negative at padding."""
        mixed = self.attention(self.query(x), self.key(x), self.value(x), bias)
        x = self.attention_norm(x + self.output(mixed))
        out: Tensor = self.ffn_norm(x + self.down(nn.functional.gelu(self.up(x))))
        return out


class BertClassifier(nn.Module):
    """Token ids and mask to `Outputs`. Dropout-free: the student is far too small to need it."""

    MASK_BIAS = -1e4  # representable in fp16, and exp() of it is exactly 0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.pool = Addend()
        self.classifier = nn.Linear(config.width, config.classes)

    def forward(self, input_ids: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"]) -> Outputs:
        """`attention_mask` is 1 at tokens and 0 at padding; a text has at least one token."""
        mask = attention_mask.to(self.embeddings.position.dtype)
        bias = ((1.0 - mask) * self.MASK_BIAS)[:, None, None, :]
        # in training, padding as the first token: nothing reads it, but ranges of activations must not be those of junk
        x = self.embeddings(input_ids, mask if self.training else None)
        for layer in self.layers:
            x = layer(x, bias)
        weights = mask[:, :, None]
        pooled = (self.pool(x) * weights).sum(1) / weights.sum(1)
        return Outputs(self.classifier(pooled), pooled)


def build(config: Config) -> BertClassifier:
    """A student with random weights: linear layers normal with deviation 0.7/sqrt(inputs), embeddings 0.02, biases 0.

    BERT's fixed 0.02 is 0.55/sqrt(768); kept at widths such as 128, it would leave the layers almost silent.
    """
    model = BertClassifier(config)
    nn.init.normal_(model.embeddings.position, std=0.02)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.7 / math.sqrt(module.in_features))
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    return model
