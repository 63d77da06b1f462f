"""Teachers of random weights, students that start from their layers, and how far apart they answer."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from edgedistill.students.bert import Config
from edgedistill.students.bert.module import BertClassifier, build
from edgedistill.students.bert.start import Started, start

SIZES: dict[str, Any] = {"layers": 3, "width": 32, "heads": 4, "ffn": 48, "max_length": 16, "classes": 3}


def randomised(model: nn.Module, seed: int = 3) -> nn.Module:
    """Every bias, gain and table random, so that two of them cannot be swapped unseen."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            gain = "norm.weight" in name.lower()
            value.copy_(1 + 0.2 * torch.randn_like(value) if gain else 0.3 * torch.randn_like(value))
    return model.eval()


def bert(**changes: Any) -> BertModel:
    sizes = {"vocab_size": 30522, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 20}
    model = randomised(BertModel(BertConfig(**(sizes | changes)), add_pooling_layer=False))
    assert isinstance(model, BertModel)
    return model


def started(body: nn.Module, tokenizer: Tokenizer, texts: list[str], seed: int = 0, **sizes: Any) -> Started:
    torch.manual_seed(seed)
    return start(SIZES | sizes, "layers", 400, tokenizer, body, texts)


def student_of(made: Started) -> BertClassifier:
    model = build(Config(**made.config))
    model.load_state_dict(made.weights)
    return model.eval()


@torch.no_grad()
def of_student(made: Started, texts: list[str]) -> Tensor:
    """The pooled embedding of each text, one text at a time."""
    model = student_of(made)
    rows = [torch.tensor([made.tokenizer.encode(text).ids]) for text in texts]
    return torch.cat([model(ids, torch.ones_like(ids)).pooled for ids in rows])


@torch.no_grad()
def of_teacher(body: nn.Module, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """The same of the teacher, as transformers computes it, in one padded batch."""
    found = [tokenizer.encode(text).ids for text in texts]
    longest = max(map(len, found))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in found])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in found])
    hidden = body(input_ids=ids, attention_mask=mask).last_hidden_state * mask[:, :, None]
    return torch.as_tensor(hidden.sum(1) / mask.sum(1, keepdim=True))


def gap(made: Started, body: nn.Module, tokenizer: Tokenizer, texts: list[str]) -> float:
    """The largest difference between the student's pooled embeddings, brought to the teacher's width, and its own."""
    widened = of_student(made, texts) @ made.projector["weight"].T + made.projector["bias"]
    return float((widened - of_teacher(body, tokenizer, texts)).abs().max())
