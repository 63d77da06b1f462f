"""A located teacher as a running network: transformers' own modules, weights from safetensors, no remote code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import normalize

from edgedistill.data.tensors import Outputs
from edgedistill.data.tokenizer import read_tokenizer
from edgedistill.errors import TeacherError
from edgedistill.teachers import _onnx_bert
from edgedistill.teachers._files import Located


class TeacherNetwork(nn.Module):
    """A transformers encoder with mean pooling and a linear head, or a classifier with the head it came with."""

    def __init__(self, body: nn.Module, head: nn.Linear | None) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, input_ids: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"]) -> Outputs:
        """Class logits and the mean of the last hidden states over the text's tokens."""
        own_head = self.head is None
        answer = self.body(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=own_head)
        hidden = answer.hidden_states[-1] if own_head else answer.last_hidden_state
        pooled = mean_pool(hidden, attention_mask)
        if self.head is None:
            return Outputs(answer.logits, pooled)
        # unit length: sentence encoders are trained on angles, and the head should not see lengths
        pooled = normalize(pooled, dim=-1)
        return Outputs(self.head(pooled), pooled)


def mean_pool(
    hidden: Float[Tensor, "batch length width"], attention_mask: Int[Tensor, "batch length"]
) -> Float[Tensor, "batch width"]:
    """Mean over the positions where the mask is 1."""
    weights = attention_mask[:, :, None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def load_body(located: Located, *, classifier: bool) -> nn.Module:
    """The encoder, or the whole classifier, with the located weights, in eval mode.

    Raises:
        TeacherError: an unknown architecture, or weights that do not fit it.
    """
    body = _empty(located.config, classifier, located.folder)
    weights = _read(located.weights)
    if not classifier:  # a checkpoint of a larger model keeps its encoder under a prefix such as `bert.`
        prefix = f"{getattr(body, 'base_model_prefix', '')}."
        if any(name.startswith(prefix) for name in weights):
            weights = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    try:
        missing = body.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False).missing_keys
    except RuntimeError as error:
        lines = str(error).splitlines()
        reason = lines[min(1, len(lines) - 1)].strip()
        raise TeacherError(f"{located.weights}: does not fit its config.json: {reason}") from None
    needed = [name for name in missing if not name.startswith("pooler.")]
    if needed:
        raise TeacherError(f"{located.weights}: {len(needed)} weights are missing, the first is {needed[0]}.")
    return body.eval()


def _trusted(config: dict[str, Any]) -> dict[str, Any]:
    """The config without the keys that name code to fetch and run: the folder's own, or a kernel of the hub."""
    names = ["auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal"]
    names += ["experts_implementation", "_experts_implementation", "_experts_implementation_internal"]
    return {key: _trusted(v) if isinstance(v, dict) else v for key, v in config.items() if key not in names}


def _empty(config: dict[str, Any], classifier: bool, where: Path) -> nn.Module:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    known = {key: value for key, value in _trusted(config).items() if key != "transformers_version"}
    wrong = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError, ImportError)
    try:
        built = AutoConfig.for_model(**known)
        factory = AutoModelForSequenceClassification if classifier else AutoModel
        body: nn.Module = factory.from_config(built, trust_remote_code=False)
    except (*wrong, StrictDataclassError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TeacherError(f"{where / 'config.json'}: cannot build {config['model_type']!r}: {reason}") from None
    return body.float()


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".onnx":
        return _onnx_bert.read_weights(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise TeacherError(f"{path}: not a readable safetensors file ({error}).") from None


def load_tokenizer(folder: Path, vocabulary: int) -> Tokenizer:
    """The folder's fast tokenizer.

    Raises:
        TeacherError: none is there, or it can produce ids the model has no embedding for (`vocabulary` rows).
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True, use_fast=True
        ).backend_tokenizer
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TeacherError(f"{folder}: no usable fast tokenizer (tokenizer.json or vocab.txt): {reason}") from None
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= vocabulary:
        raise TeacherError(
            f"{folder}: wrong vocabulary: the tokenizer has ids up to {highest}, the model {vocabulary} embeddings. "
            "The tokenizer belongs to another model."
        )
    if highest < 0.5 * vocabulary:
        raise TeacherError(
            f"{folder}: wrong vocabulary: the tokenizer knows {highest + 1} pieces, the model {vocabulary}. "
            "The tokenizer belongs to another model."
        )
    tokenizer.no_padding()
    return tokenizer


def save(folder: Path, network: TeacherNetwork, tokenizer: Tokenizer, labels: tuple[str, ...]) -> None:
    """Write a fitted teacher: weights, config, tokenizer and labels."""
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / "model.safetensors")
    config = network.body.config.to_dict()  # type: ignore[operator, union-attr]
    config.pop("transformers_version", None)
    width = None if network.head is None else network.head.in_features
    facts = {"config": config, "labels": list(labels), "head_width": width}
    (folder / "teacher.json").write_text(json.dumps(facts, indent=1, sort_keys=True, default=str), encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))


def load(folder: Path) -> tuple[TeacherNetwork, Tokenizer, tuple[str, ...]]:
    """Read a fitted teacher that `save` wrote: network in eval mode, tokenizer, labels in the order of its logits."""
    facts = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
    width = facts["head_width"]
    body = _empty(facts["config"], width is None, folder)
    head = None if width is None else nn.Linear(width, len(facts["labels"]))
    network = TeacherNetwork(body, head)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network.eval(), read_tokenizer(folder), tuple(facts["labels"])


@torch.no_grad()
def width_of(body: nn.Module) -> int:
    """The width of an encoder's hidden states."""
    one = torch.ones(1, 2, dtype=torch.long)
    return int(body(input_ids=one, attention_mask=one).last_hidden_state.shape[-1])
