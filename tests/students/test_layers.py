"""Students that start from their teacher's layers: exact where sizes agree, lossless where what is cut is dead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from bert_starts import bert, gap, of_student, of_teacher, started
from tokenizers import Tokenizer
from torch import nn
from transformers import BertForSequenceClassification

from edgedistill.errors import SpecError, TeacherError
from edgedistill.plan import stages
from edgedistill.specs import StudentSpec
from edgedistill.students.bert import Config
from edgedistill.students.bert.layers import uniform_map
from edgedistill.students.bert.module import Layer, build
from edgedistill.students.bert.reduction import (
    layers_of,
)
from edgedistill.teachers._network import TeacherNetwork


@pytest.mark.parametrize(
    ("deep", "layers", "expected"),
    [
        (12, 4, [2, 5, 8, 11]),
        (12, 6, [1, 3, 5, 7, 9, 11]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (6, 2, [2, 5]),
        (6, 4, [0, 2, 3, 5]),
        (12, 1, [11]),
        (1, 1, [0]),
    ],
)
def test_the_map_of_layers_is_uniform_and_ends_with_the_last(deep: int, layers: int, expected: list[int]) -> None:
    assert uniform_map(deep, layers) == expected


def test_with_all_sizes_of_the_teacher_the_student_answers_as_the_teacher(
    wordpiece: Tokenizer, texts: list[str]
) -> None:
    teacher = bert()
    made = started(teacher, wordpiece, texts)
    assert of_student(made, texts).std(0).min() > 1e-2, "texts must differ for the comparison to mean anything"
    assert gap(made, teacher, wordpiece, texts) < 1e-5
    pooled = of_student(made, texts)
    torch.testing.assert_close(pooled, of_teacher(teacher, wordpiece, texts), rtol=0, atol=1e-5)
    assert "layers start: layer 1, 2, 3 of the teacher's 3, unchanged" in made.note


def test_what_is_copied_is_bit_identical(wordpiece: Tokenizer, texts: list[str]) -> None:
    teacher = bert()
    made = started(teacher, wordpiece, texts)
    own, theirs = made.weights, teacher.state_dict()
    vocabulary = wordpiece.get_vocab(with_added_tokens=True)
    for piece, index in made.tokenizer.get_vocab(with_added_tokens=True).items():
        row = theirs["embeddings.word_embeddings.weight"][vocabulary[piece]]
        assert torch.equal(own["embeddings.word.weight"][index], row)
    folded = theirs["embeddings.position_embeddings.weight"][:16] + theirs["embeddings.token_type_embeddings.weight"][0]
    assert torch.equal(own["embeddings.position"], folded)
    names = {"embeddings.norm": "embeddings.LayerNorm"}
    for n in range(3):
        names |= {
            f"layers.{n}.{part}": f"encoder.layer.{n}.attention.self.{part}" for part in ("query", "key", "value")
        }
        names |= {
            f"layers.{n}.output": f"encoder.layer.{n}.attention.output.dense",
            f"layers.{n}.attention_norm": f"encoder.layer.{n}.attention.output.LayerNorm",
            f"layers.{n}.up": f"encoder.layer.{n}.intermediate.dense",
            f"layers.{n}.down": f"encoder.layer.{n}.output.dense",
            f"layers.{n}.ffn_norm": f"encoder.layer.{n}.output.LayerNorm",
        }
    for ours, source in names.items():
        for part in ("weight", "bias"):
            assert torch.equal(own[f"{ours}.{part}"], theirs[f"{source}.{part}"]), ours
    covered = {"embeddings.word.weight", "embeddings.position", "classifier.weight", "classifier.bias"}
    assert set(own) == covered | {f"{name}.{part}" for name in names for part in ("weight", "bias")}


def test_fewer_layers_are_those_of_the_map(wordpiece: Tokenizer, texts: list[str]) -> None:
    teacher = bert(num_hidden_layers=6)
    made = started(teacher, wordpiece, texts, layers=2)
    for n, source in enumerate((2, 5)):
        wanted = teacher.state_dict()[f"encoder.layer.{source}.output.dense.weight"]
        assert torch.equal(made.weights[f"layers.{n}.down.weight"], wanted)
    assert "layer 3, 6 of the teacher's 6" in made.note


def test_a_whole_classifier_as_teacher_starts_the_same_student_as_its_encoder(
    wordpiece: Tokenizer, texts: list[str]
) -> None:
    encoder = bert()
    classifier = BertForSequenceClassification(encoder.config).eval()
    classifier.bert.load_state_dict(encoder.state_dict(), strict=False)
    one, two = (started(TeacherNetwork(body, None).body, wordpiece, texts) for body in (encoder, classifier))
    assert all(torch.equal(value, two.weights[name]) for name, value in one.weights.items())


def test_dead_and_constant_neurons_are_dropped_without_loss(wordpiece: Tokenizer, texts: list[str]) -> None:
    teacher = bert()
    torch.manual_seed(1)
    with torch.no_grad():
        for layer in teacher.encoder.layer:
            unheard, constant = torch.randperm(48)[:16].split(8)
            layer.output.dense.weight[:, unheard] = 0
            layer.intermediate.dense.weight[constant] = 0
            layer.intermediate.dense.bias[constant] = 1.5
    assert gap(started(teacher, wordpiece, texts, ffn=32), teacher, wordpiece, texts) < 2e-5
    assert gap(started(teacher, wordpiece, texts, ffn=31), teacher, wordpiece, texts) > 1e-3


def test_the_order_of_neurons_changes_nothing(wordpiece: Tokenizer, texts: list[str]) -> None:
    before = of_student(started(teacher := bert(), wordpiece, texts, ffn=20), texts)
    torch.manual_seed(5)
    with torch.no_grad():
        for layer in teacher.encoder.layer:
            order = torch.randperm(48)
            up, down = layer.intermediate.dense, layer.output.dense
            up.weight.copy_(up.weight[order].clone())
            up.bias.copy_(up.bias[order].clone())
            down.weight.copy_(down.weight[:, order].clone())
    torch.testing.assert_close(of_student(started(teacher, wordpiece, texts, ffn=20), texts), before, rtol=0, atol=1e-5)


def test_equal_seeds_start_equal_students_and_the_teacher_and_tokenizer_are_left_alone(
    wordpiece: Tokenizer, texts: list[str]
) -> None:
    teacher = bert()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    sizes = {"width": 24, "heads": 3, "layers": 2}
    one, two, other = (started(teacher, wordpiece, texts, seed, **sizes) for seed in (1, 1, 2))
    assert all(torch.equal(value, two.weights[name]) for name, value in one.weights.items())
    assert all(torch.equal(value, two.projector[name]) for name, value in one.projector.items())
    assert not torch.equal(one.weights["embeddings.word.weight"], other.weights["embeddings.word.weight"])
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert one.tokenizer.truncation is None
    assert one.tokenizer.padding is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())


def test_long_texts_are_cut_to_the_length_of_the_student(wordpiece: Tokenizer, texts: list[str]) -> None:
    made = started(bert(), wordpiece, [" ".join(texts[:9]), *texts], width=16, heads=2, max_length=5)
    assert made.weights["embeddings.position"].shape == (5, 16)
    assert all(bool(value.isfinite().all()) for value in made.weights.values())


@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_another_architecture_is_refused_by_name(
    body: Callable[..., nn.Module], wordpiece: Tokenizer, texts: list[str], kind: str
) -> None:
    with pytest.raises(TeacherError, match=rf"'{kind}' model.*set init = \"embeddings\""):
        started(body(kind, 30522), wordpiece, texts)


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"is_decoder": True}])
def test_a_bert_that_computes_something_else_is_refused(
    wordpiece: Tokenizer, texts: list[str], change: dict[str, Any]
) -> None:
    (name,) = change
    with pytest.raises(TeacherError, match=rf"{name} = .*set init = \"embeddings\""):
        started(bert(**change), wordpiece, texts)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 4}, "layers = 4 (at most 3)"),
        ({"ffn": 49}, "ffn = 49 (at most 48)"),
        ({"max_length": 21}, "max_length = 21 (at most 20)"),
        ({"width": 20}, "width = 20 (a multiple of 8, at most 32)"),
        ({"width": 40, "heads": 5}, "width = 40 (a multiple of 8, at most 32)"),
        ({"width": 16, "heads": 4}, "heads = 4 (2 at width 16, as the teacher's have 8 values)"),
        ({"heads": 2}, "heads = 2 (4 at width 32"),
        ({"layers": 9, "ffn": 64}, "layers = 9 (at most 3), ffn = 64 (at most 48)"),
    ],
)
def test_sizes_that_the_teacher_does_not_have_are_refused_with_those_allowed(
    wordpiece: Tokenizer, texts: list[str], sizes: dict[str, int], message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        started(bert(), wordpiece, texts, **sizes)
    assert message in str(caught.value)
    assert 'init = "embeddings"' in str(caught.value)


def test_the_plan_has_a_sentence_for_every_start() -> None:
    assert set(stages.STARTS) == set(get_args(StudentSpec.model_fields["init"].annotation))
    assert len(set(stages.STARTS.values())) == len(stages.STARTS)


def test_layers_are_of_their_own_type() -> None:
    model = build(Config(layers=2, width=16, heads=2, ffn=8))
    assert all(isinstance(layer, Layer) for layer in layers_of(model))
