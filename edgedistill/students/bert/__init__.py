"""BERT-like text encoder with a classification head (Devlin et al. 2019): post-layer-norm, GELU, mean pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from edgedistill.errors import SpecError, TeacherError
from edgedistill.specs import Spec
from edgedistill.students import Cost, Port, Signature, StoredTensor, remembered
from edgedistill.students._tensors import linear_tensors, norm_tensors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMATS = ("tflite", "onnx", "gguf", "coreml")
GELUS = ("gelu", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh")
LARGEST = {"layers": "num_hidden_layers", "ffn": "intermediate_size", "max_length": "max_position_embeddings"}
# what a config.json that leaves a key out means in transformers
BERT_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "is_decoder": False,
}
Count = Annotated[int, Field(ge=1)]

# What `plan --search` looks through: every combination.
SPACE = {
    "layers": (1, 2, 3, 4, 5, 6, 7, 8, 10, 12),
    "width": (32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512),
    "head_width": (32, 16, 64),
    "ffn_ratio": (1, 2, 3, 4),
    "vocabulary": (1000, 1250, 1500, 1750, 2000, 2500, 3000, 4000, 6000, 8000, 12000, 16000),
}


class Config(Spec):
    """Sizes of the student. `vocabulary` and `classes` are filled in from the data when a candidate leaves them out."""

    layers: Annotated[int, Field(ge=1, le=48)]
    width: Annotated[int, Field(ge=8, le=4096)]
    heads: Count
    ffn: Count
    vocabulary: Count = 3000
    max_length: Count = 64
    classes: Annotated[int, Field(ge=2)] = 2

    @model_validator(mode="after")
    def _divides(self) -> Config:
        if self.width % self.heads:
            raise ValueError(f"width = {self.width} is not a multiple of heads = {self.heads}")
        return self


TINY = Config(layers=1, width=16, heads=2, ffn=32, vocabulary=120, max_length=16, classes=3)


@remembered
def tensors(config: Config) -> list[StoredTensor]:
    """Every tensor of the student, named as in its state dict."""
    w, f = config.width, config.ffn
    found = [
        StoredTensor("embeddings.word.weight", (config.vocabulary, w), "embedding", ("bert",)),
        StoredTensor("embeddings.position", (config.max_length, w), "float", ("position",)),
        *norm_tensors("embeddings.norm", w),
    ]
    for n in range(config.layers):
        for name in ("query", "key", "value", "output"):
            found += linear_tensors(f"layers.{n}.{name}", w, w)
        found += norm_tensors(f"layers.{n}.attention_norm", w, "bert.layer")
        found += linear_tensors(f"layers.{n}.up", f, w) + linear_tensors(f"layers.{n}.down", w, f)
        found += norm_tensors(f"layers.{n}.ffn_norm", w)
    head = StoredTensor("classifier.weight", (config.classes, w), "head")
    return [*found, head, StoredTensor("classifier.bias", (config.classes,), "float", ("bias",))]


def signatures(config: Config, buckets: Sequence[int]) -> tuple[Signature, ...]:
    """One entry point `length_N` per bucket: ids and mask (1 at tokens, 0 at padding) of one text to its logits.

    Raises:
        ValueError: if there is no bucket, or one is not between 1 and `max_length`.
    """
    lengths = sorted(set(buckets))
    if not lengths or lengths[0] < 1 or lengths[-1] > config.max_length:
        raise ValueError(f"length buckets {list(buckets)} must be between 1 and max_length = {config.max_length}")
    logits = Port("logits", (1, config.classes), "float32")
    return tuple(
        Signature(
            f"length_{n}", (Port("input_ids", (1, n), "int32"), Port("attention_mask", (1, n), "int32")), (logits,)
        )
        for n in lengths
    )


def sample(config: Config, signature: Signature, random: np.random.Generator) -> dict[str, NDArray[Any]]:
    """A random text of random length, padded."""
    import numpy as np

    length = signature.inputs[0].shape[1]
    mask = np.arange(length)[None] < random.integers(1, length + 1)
    ids = random.integers(0, config.vocabulary, (1, length))
    return {"input_ids": ids.astype(np.int32), "attention_mask": mask.astype(np.int32)}


def parameters(config: Config) -> int:
    """Number of trained values."""
    return sum(prod(tensor.shape) for tensor in tensors(config))


def macs(config: Config, length: int) -> int:
    """Multiply-accumulates of one text of `length` tokens: linear layers, attention scores and values, head."""
    linear = 4 * config.width**2 + 2 * config.width * config.ffn
    attention = 2 * length * config.width
    return config.layers * length * (linear + attention) + config.width * config.classes


def cost(config: Config, length: int) -> Cost:
    """What one text of `length` tokens costs."""
    w, f, n, deep = config.width, config.ffn, length, config.layers
    moved = n * w + deep * n * (7 * w + f)  # what is read is as much as what is written, but for the head
    return Cost(
        macs=macs(config, length),
        depthwise_macs=0,
        read_elements=moved + w,
        written_elements=moved + config.classes,
        peak_elements=n * max(w + f, 2 * w),
        layers=2 + 8 * deep,
        convolutions=0,
        depthwise_layers=0,
        weights=parameters(config) - (config.vocabulary - n) * w - (config.max_length - n) * w,
        attention_elements=config.heads * n * n,
    )


def check_layers(config: Config, teacher: Mapping[str, Any]) -> None:
    """Refuse a student that cannot start from its teacher's layers; `teacher` is the content of its config.json.

    Raises:
        TeacherError: the teacher is not a BERT encoder with layers like the student's.
        SpecError: the student's sizes cannot be cut from the teacher's.
    """
    advice = 'set init = "embeddings" in [student].'
    kind = teacher.get("model_type")
    if kind != "bert":
        raise TeacherError(
            f'the teacher is a {kind!r} model, and init = "layers" copies the layers of "bert": {advice}'
        )
    about = BERT_DEFAULTS | {key: value for key, value in teacher.items() if value is not None}
    if about["hidden_act"] not in GELUS or about["is_decoder"]:
        seen = "is_decoder = true" if about["is_decoder"] else f"hidden_act = {about['hidden_act']!r}"
        raise TeacherError(
            f"the teacher is a {kind!r} model with {seen}, and a student has plain GELU layers: {advice}"
        )
    width, size = about["hidden_size"], about["hidden_size"] // about["num_attention_heads"]
    most = {name: about[key] for name, key in LARGEST.items()}
    wrong = [f"{name} = {getattr(config, name)} (at most {n})" for name, n in most.items() if getattr(config, name) > n]
    if config.width > width or config.width % size:
        wrong.append(f"width = {config.width} (a multiple of {size}, at most {width})")
    elif config.heads != config.width // size:
        heads = config.width // size
        wrong.append(f"heads = {config.heads} ({heads} at width {config.width}, as the teacher's have {size} values)")
    if wrong:
        raise SpecError(f'init = "layers" cannot cut this student from its teacher: {", ".join(wrong)}. Or {advice}')
