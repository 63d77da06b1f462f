"""Where a student starts: embeddings that keep the teacher's geometry, or random ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from edgedistill.students.bert import TINY, tensors
from edgedistill.students.bert.module import build
from edgedistill.students.bert.start import Started, start
from edgedistill.students.bert.vocabulary import trim
from edgedistill.tasks import text_classification as task

SIZES: dict[str, Any] = {"layers": 1, "width": 16, "heads": 2, "ffn": 32, "max_length": 16, "classes": 3}
Body = Callable[..., nn.Module]
Subword = Callable[[str], Tokenizer]


def started(
    body: nn.Module, tokenizer: Tokenizer, texts: list[str], init: str = "embeddings", seed: int = 0, **sizes: Any
) -> Started:
    torch.manual_seed(seed)
    return start(SIZES | sizes, init, 400, tokenizer, body, texts)


def student_of(made: Started) -> nn.Module:
    model = build(TINY.model_validate(made.config))
    model.load_state_dict(made.weights)
    return model.eval()


def low_rank(body: nn.Module, rank: int = 12) -> nn.Module:
    """Give the body embeddings like trained ones: most variance lies in a few directions."""
    table = body.get_input_embeddings().weight  # type: ignore[operator]
    torch.manual_seed(9)
    with torch.no_grad():
        table.copy_(
            torch.randn(len(table), rank) @ torch.randn(rank, table.shape[1]) + 0.1 * torch.randn_like(table) + 2
        )
    return body


def ranks(values: Tensor) -> Tensor:
    return values.argsort().argsort().double()


def rank_correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


def distances(made: Started, teacher: Tensor, tokenizer: Tokenizer, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Distances between the pieces that the texts use, in the student's table and in the teacher's."""
    used = sorted({index for text in texts for index in made.tokenizer.encode(text, add_special_tokens=False).ids})
    own = made.weights["embeddings.word.weight"][used]
    sources = trim(tokenizer, texts, 400).sources
    theirs = torch.stack([teacher[list(sources[index])].mean(0) for index in used])
    return torch.pdist(own), torch.pdist(theirs)


def test_an_embeddings_start_keeps_which_pieces_are_near_and_which_are_far(
    body: Body, wordpiece: Tokenizer, texts: list[str]
) -> None:
    teacher = low_rank(body("bert", 30522))
    table = teacher.get_input_embeddings().weight.detach()  # type: ignore[operator]
    near = started(teacher, wordpiece, texts)
    assert rank_correlation(*distances(near, table, wordpiece, texts)) > 0.95
    drawn = started(teacher, wordpiece, texts, init="random")
    assert abs(rank_correlation(*distances(drawn, table, wordpiece, texts))) < 0.3


def test_the_gain_of_the_layer_norm_of_the_teacher_counts(body: Body, wordpiece: Tokenizer, texts: list[str]) -> None:
    teacher = low_rank(body("bert", 30522))
    gain = torch.linspace(0.1, 3, 32)
    with torch.no_grad():
        teacher.embeddings.LayerNorm.weight.copy_(gain)  # type: ignore[union-attr, operator]
    table = teacher.get_input_embeddings().weight.detach()  # type: ignore[operator]
    own, gained = distances(started(teacher, wordpiece, texts), table * gain, wordpiece, texts)
    _, plain = distances(started(teacher, wordpiece, texts), table, wordpiece, texts)
    assert rank_correlation(own, gained) > 0.95
    assert rank_correlation(own, gained) > rank_correlation(own, plain)


@pytest.mark.parametrize("width", [8, 32, 48])
def test_a_student_as_wide_as_the_teacher_or_wider_keeps_all_distances_up_to_one_scale(
    body: Body, wordpiece: Tokenizer, texts: list[str], width: int
) -> None:
    teacher = low_rank(body("bert", 30522))
    table = teacher.get_input_embeddings().weight.detach()  # type: ignore[operator]
    own, theirs = distances(started(teacher, wordpiece, texts, width=width), table, wordpiece, texts)
    ratio = own / theirs
    spread = float(ratio.std() / ratio.mean())
    assert (spread < 1e-3) == (width >= 32)


def test_the_layer_norm_of_the_student_sees_about_unit_variance(
    body: Body, wordpiece: Tokenizer, texts: list[str]
) -> None:
    made = started(low_rank(body("bert", 30522)), wordpiece, texts)
    used = sorted({index for text in texts for index in made.tokenizer.encode(text).ids})
    deviation = made.weights["embeddings.word.weight"][used].std(1).mean()
    assert 0.5 < float(deviation) < 2


def test_positions_keep_which_are_near_and_start_where_those_of_the_teacher_start(
    body: Body, subword: Subword, texts: list[str]
) -> None:
    tokenizer = subword("bpe")
    for kind, offset in (("bert", 0), ("roberta", 2), ("distilbert", 0)):  # RoBERTa keeps its first two for padding
        teacher = low_rank(body(kind, tokenizer.get_vocab_size()))
        table = teacher.embeddings.position_embeddings.weight  # type: ignore[union-attr]
        with torch.no_grad():
            table.copy_(
                torch.randn(12, 66, generator=torch.Generator().manual_seed(1)).T @ low_rank_directions(teacher)
            )
        made = started(teacher, tokenizer, texts)
        own = torch.pdist(made.weights["embeddings.position"])
        theirs = torch.pdist(table.detach()[offset : offset + 16])
        assert rank_correlation(own, theirs) > 0.9, kind


def low_rank_directions(teacher: nn.Module) -> Tensor:
    """The twelve directions in which the word embeddings vary most: PCA looks at words alone."""
    table = teacher.get_input_embeddings().weight.detach()  # type: ignore[operator]
    return torch.linalg.svd(table - table.mean(0), full_matrices=False).Vh[:12]


@pytest.mark.parametrize("init", ["embeddings", "random"])
@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta"])
@pytest.mark.parametrize("pieces", ["bpe", "unigram"])
def test_a_teacher_of_any_of_these_architectures_gives_a_student_that_runs(
    body: Body, subword: Subword, texts: list[str], kind: str, init: str, pieces: str
) -> None:
    tokenizer = subword(pieces)
    made = started(body(kind, tokenizer.get_vocab_size()), tokenizer, texts, init)
    config = TINY.model_validate(made.config)
    assert config.vocabulary == made.tokenizer.get_vocab_size()
    assert {n: tuple(v.shape) for n, v in made.weights.items()} == {t.name: t.shape for t in tensors(config)}
    assert all(bool(value.isfinite().all()) for value in made.weights.values())
    assert {n: tuple(v.shape) for n, v in made.projector.items()} == {"weight": (32, 16), "bias": (32,)}
    with torch.no_grad():
        logits = student_of(made)(*task.collate(task.encode(made.tokenizer, texts[:4], 16), 0)).logits
    assert bool(logits.isfinite().all())
    assert init in made.note


def test_an_embeddings_start_without_wordpiece_keeps_the_geometry_too(
    body: Body, subword: Subword, texts: list[str]
) -> None:
    tokenizer = subword("bpe")
    teacher = low_rank(body("roberta", tokenizer.get_vocab_size()))
    table = teacher.get_input_embeddings().weight.detach()  # type: ignore[operator]
    assert rank_correlation(*distances(started(teacher, tokenizer, texts), table, tokenizer, texts)) > 0.9


@pytest.mark.parametrize("init", ["embeddings", "random"])
def test_equal_seeds_start_equal_students_and_the_teacher_is_left_alone(
    body: Body, wordpiece: Tokenizer, texts: list[str], init: str
) -> None:
    teacher = body("bert", 30522)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    one, two, other = (started(teacher, wordpiece, texts, init, seed) for seed in (1, 1, 2))
    assert all(torch.equal(value, two.weights[name]) for name, value in one.weights.items())
    assert all(torch.equal(value, two.projector[name]) for name, value in one.projector.items())
    assert not torch.equal(one.weights["classifier.weight"], other.weights["classifier.weight"])
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_whole_classifier_as_teacher_starts_the_same_student_as_its_encoder(
    body: Body, wordpiece: Tokenizer, texts: list[str]
) -> None:
    from transformers import BertForSequenceClassification

    encoder = body("bert", 30522)
    torch.manual_seed(0)
    classifier = BertForSequenceClassification(encoder.config)
    classifier.bert.load_state_dict(encoder.state_dict(), strict=False)
    one, two = started(encoder, wordpiece, texts), started(classifier, wordpiece, texts)
    assert all(torch.equal(value, two.weights[name]) for name, value in one.weights.items())


def test_a_student_with_more_positions_than_the_teacher_draws_its_own(
    body: Body, wordpiece: Tokenizer, texts: list[str]
) -> None:
    made = started(body("bert", 30522), wordpiece, texts, max_length=80)
    assert made.weights["embeddings.position"].shape == (80, 16)
    assert float(made.weights["embeddings.position"].std()) == pytest.approx(0.02, rel=0.1)
