"""A teacher is fitted: the head is the one answer of a convex problem."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification, BertModel

from edgedistill import training
from edgedistill.data import Row, Splits
from edgedistill.fit import fit_head, fit_network
from edgedistill.specs import FitSpec, Silent
from edgedistill.tasks import text_classification as task
from edgedistill.teachers._network import TeacherNetwork

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{n}" for n in range(30))]


def clouds(rows: int = 300, classes: int = 4, width: int = 10, apart: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = apart * torch.randn(classes, width, generator=generator)
    labels = torch.arange(rows) % classes
    return centres[labels] + torch.randn(rows, width, generator=generator), labels


def slope(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, l2: float) -> float:
    weight, bias = weight.double().requires_grad_(), bias.double().requires_grad_()
    loss = cross_entropy(x.double() @ weight.T + bias, labels) + 0.5 * l2 * weight.square().sum()
    return float(torch.cat([g.flatten() for g in torch.autograd.grad(loss, (weight, bias))]).norm())


@pytest.mark.parametrize("l2", [1e-5, 1e-3, 1e-1])
def test_the_head_ends_where_the_gradient_vanishes(l2: float) -> None:
    x, labels = clouds()
    weight, bias = fit_head(x, labels, 4, l2)
    start = slope(x, labels, torch.zeros(4, 10), torch.zeros(4), l2)
    assert slope(x, labels, weight, bias, l2) < 1e-3 * start


def test_the_head_is_the_optimum_that_plain_gradient_descent_finds_too() -> None:
    x, labels = clouds(rows=100, width=5)
    weight, bias = fit_head(x, labels, 4, 1e-1)
    w = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    for _ in range(3000):
        loss = cross_entropy(x.double() @ w.T + b, labels) + 0.5e-1 * w.square().sum()
        gw, gb = torch.autograd.grad(loss, (w, b))
        with torch.no_grad():
            w -= 0.2 * gw
            b -= 0.2 * gb
    torch.testing.assert_close(weight, w.detach().float(), atol=2e-3, rtol=0)
    torch.testing.assert_close(bias - bias.mean(), (b - b.mean()).detach().float(), atol=2e-3, rtol=0)


def test_a_stronger_penalty_gives_smaller_weights() -> None:
    x, labels = clouds()
    norms = [float(fit_head(x, labels, 4, l2)[0].norm()) for l2 in (1e-4, 1e-2, 1.0)]
    assert norms == sorted(norms, reverse=True)


@pytest.mark.parametrize("l2", [0.0, 1e-5])
def test_classes_that_are_perfectly_apart_are_learnt_without_overflow(l2: float) -> None:
    x, labels = clouds(apart=30.0)
    weight, bias = fit_head(x, labels, 4, l2)
    assert bool(weight.isfinite().all())
    assert bool(((x @ weight.T + bias).argmax(-1) == labels).all())


def test_embeddings_of_unit_length_are_separated_as_well_as_long_ones() -> None:
    x, labels = clouds(apart=2.0)
    x = torch.nn.functional.normalize(x, dim=-1)
    weight, bias = fit_head(x, labels, 4, 1e-5)
    assert float(((x @ weight.T + bias).argmax(-1) == labels).float().mean()) > 0.9


def test_the_head_is_the_same_bits_every_time_whatever_was_drawn_before() -> None:
    x, labels = clouds()
    first = fit_head(x, labels, 4, 1e-4)
    torch.manual_seed(12345)
    again = fit_head(x, labels, 4, 1e-4)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_a_class_without_rows_does_no_harm() -> None:
    x, labels = clouds()
    weight, bias = fit_head(x, labels, 5, 1e-4)
    assert weight.shape == (5, 10)
    assert bool(((x @ weight.T + bias).argmax(-1) != 4).all())


def body(classifier: bool = False) -> BertModel | BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    return (BertForSequenceClassification(config) if classifier else BertModel(config)).eval()


def tokenizer() -> Tokenizer:
    built = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return built


def splits(rows: int = 40) -> Splits:
    """Texts of small or of large words; a linear head on a random body tells them apart only in part."""
    generator = torch.Generator().manual_seed(1)

    def row(n: int) -> Row:
        # the label is whether the first word is an even one: a mean over words barely shows it
        words = torch.randint(0, 30, (4,), generator=generator).tolist()
        words[0] = words[0] - words[0] % 2 + n % 2
        return Row(f"id{n}", " ".join(f"w{w}" for w in words), "odd" if n % 2 else "even")

    train = [row(n) for n in range(rows)]
    return Splits(
        tuple(train), validation=(), calibration=(), held_out=(), transfer=(), labels=("even", "odd"), notes={}
    )


def loss_of(network: TeacherNetwork) -> float:
    data = splits()
    sequences = task.encode(tokenizer(), [row.text for row in data.train], 16)
    with torch.no_grad():
        logits = network(*task.collate(sequences, 0)).logits
    return float(cross_entropy(logits, torch.tensor(task.class_ids([row.label for row in data.train], data.labels))))


def fitted(fit: FitSpec, folder: Path, seed: int = 0) -> TeacherNetwork:
    return fit_network(body(), tokenizer(), splits(), fit, 16, seed, folder, Silent())


def test_method_head_leaves_the_body_as_it_came(tmp_path: Path) -> None:
    network = fitted(FitSpec(method="head"), tmp_path)
    assert all(torch.equal(value, body().state_dict()[name]) for name, value in network.body.state_dict().items())
    assert network.head is not None
    assert network.head.out_features == 2
    assert loss_of(network) < 0.6931
    assert not network.training


def test_method_none_keeps_the_head_the_teacher_came_with(tmp_path: Path) -> None:
    network = fit_network(body(True), tokenizer(), splits(), FitSpec(method="none"), 16, 0, tmp_path, Silent())
    assert network.head is None
    ids, mask = task.collate([[2, 5, 3], [2, 6, 7, 3]], 0)
    with torch.no_grad():
        own = body(True)(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(network(ids, mask).logits, own)


FINETUNE = FitSpec(method="finetune", epochs=10, batch_size=8, learning_rate=2e-3, head_l2=1e-2)


def test_method_finetune_moves_the_body_and_fits_better_than_the_head_alone(tmp_path: Path) -> None:
    head, tuned = fitted(FitSpec(method="head", head_l2=1e-2), tmp_path), fitted(FINETUNE, tmp_path)
    moved = [n for n, v in tuned.body.state_dict().items() if not torch.equal(v, body().state_dict()[n])]
    assert any("attention" in name for name in moved)
    assert loss_of(tuned) < 0.5 * loss_of(head)
    assert not tuned.training


def test_fine_tuning_that_is_cut_and_continued_ends_with_the_same_bits_dropout_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_S", 0)

    class Cut(Silent):
        def __init__(self) -> None:
            self.steps = 0

        def advance(self, units: int = 1, **facts: float) -> None:
            self.steps += bool(facts)
            if self.steps == 7:
                raise KeyboardInterrupt

    for name in ("cut", "whole", "other"):
        (tmp_path / name).mkdir()
    whole = fitted(FINETUNE, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit_network(body(), tokenizer(), splits(), FINETUNE, 16, 0, tmp_path / "cut", Cut())
    torch.manual_seed(77)
    continued = fitted(FINETUNE, tmp_path / "cut")
    assert all(torch.equal(v, continued.state_dict()[n]) for n, v in whole.state_dict().items())
    assert loss_of(fitted(FINETUNE, tmp_path / "other", seed=1)) != loss_of(whole)
