"""Students that are narrower than the teacher they start from: which directions, heads and neurons they keep."""

from __future__ import annotations

import pytest
import torch
from bert_starts import bert, randomised, started, student_of
from tokenizers import Tokenizer
from torch import Tensor, nn

from edgedistill.students.bert import Config
from edgedistill.students.bert.module import BertClassifier, build
from edgedistill.students.bert.reduction import (
    fit_norms,
    layers_of,
    observe,
    outside,
    pick_heads,
    pick_neurons,
    reduce_layers,
    rotated_axes,
)


def narrow_and_doubled() -> tuple[BertClassifier, BertClassifier, Tensor, list[list[int]]]:
    """A net of width 16, the same net with every axis twice, and the basis that takes the doubling back.

    Layer norms do not notice a doubling. The wide net has two more heads and twelve more neurons, which say nothing;
    `live` are the heads that the narrow one has, in each layer.
    """
    sizes = {"layers": 2, "vocabulary": 60, "max_length": 8, "classes": 2}
    small, large = (build(Config(**sizes, width=w, heads=w // 8, ffn=f)) for w, f in ((16, 24), (32, 36)))
    randomised(small, 7), randomised(large, 8)
    live = [[1, 3], [0, 1]]
    nn.init.ones_(small.embeddings.norm.weight)  # it goes into the tables, which is exact only where all gains agree
    with torch.no_grad():
        large.embeddings.load_state_dict(
            {name: torch.cat([value, value], -1) for name, value in small.embeddings.state_dict().items()}
        )
        for wide, thin, heads in zip(layers_of(large), layers_of(small), live, strict=True):
            columns = torch.cat([torch.arange(8) + 8 * head for head in heads])
            for name in ("query", "key", "value"):
                into, source = wide.get_submodule(name), thin.get_submodule(name)
                assert isinstance(into, nn.Linear)
                assert isinstance(source, nn.Linear)
                into.weight[columns] = torch.cat([source.weight, source.weight], 1) / 2
                into.bias[columns] = source.bias
            neurons = torch.randperm(36)[:24]
            wide.up.weight[neurons] = torch.cat([thin.up.weight, thin.up.weight], 1) / 2
            wide.up.bias[neurons] = thin.up.bias
            for into, source, kept in ((wide.output, thin.output, columns), (wide.down, thin.down, neurons)):
                into.weight.zero_()
                into.weight[:, kept] = torch.cat([source.weight, source.weight])
                into.bias.copy_(torch.cat([source.bias, source.bias]))
            for name in ("attention_norm", "ffn_norm"):
                state = thin.get_submodule(name).state_dict()
                wide.get_submodule(name).load_state_dict({k: torch.cat([v, v]) for k, v in state.items()})
    return small, large, torch.cat([torch.eye(16), torch.eye(16)]) / 2**0.5, live


def cut(large: BertClassifier, basis: Tensor, batches: list[Tensor]) -> BertClassifier:
    student = build(large.config.model_copy(update={"width": 16, "heads": 2, "ffn": 24}))
    seen = observe(large, range(2), batches)
    reduce_layers(student, layers_of(large), large.embeddings, basis, seen)
    fit_norms(student, basis, seen, batches)
    return student.eval()


@torch.no_grad()
def test_a_width_that_says_everything_twice_is_halved_without_loss() -> None:
    small, large, basis, _ = narrow_and_doubled()
    batches = [torch.randint(0, 60, (40, length)) for length in (3, 8, 5)]
    (ids, mask) = torch.randint(0, 60, (9, 8)), torch.ones(9, 8, dtype=torch.long)
    doubled = large(ids, mask).pooled
    torch.testing.assert_close(doubled, small(ids, mask).pooled.repeat(1, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(cut(large, basis, batches)(ids, mask).pooled @ basis.T, doubled, rtol=0, atol=2e-4)
    other = torch.linalg.qr(torch.randn(32, 16)).Q
    assert not torch.allclose(cut(large, other, batches)(ids, mask).pooled @ other.T, doubled, atol=0.1)


@torch.no_grad()
def test_heads_and_neurons_that_move_the_stream_are_the_ones_picked() -> None:
    _, large, basis, live = narrow_and_doubled()
    seen = observe(large, range(2), [torch.randint(0, 60, (40, 6))])
    for layer, item, heads in zip(layers_of(large), seen, live, strict=True):
        expected = [8 * head + n for head in heads for n in range(8)]
        assert pick_heads(layer, basis, item.mixed, 2).tolist() == expected
        said = layer.down.weight.abs().sum(0).nonzero().flatten().tolist()
        assert pick_neurons(layer, basis, item.active, 24).tolist() == said
        # all alike but for loudness: the loud one
        layer.output.weight[:, 8 * heads[1] : 8 * heads[1] + 8] *= 100
        assert pick_heads(layer, basis, item.mixed, 1).tolist() == expected[8:]


@torch.no_grad()
def test_the_mean_state_gets_the_queries_and_neurons_that_it_gets_in_the_teacher() -> None:
    torch.manual_seed(2)
    large = build(Config(layers=1, width=32, heads=4, ffn=36, vocabulary=60, max_length=8))
    randomised(large, 8)
    basis = torch.linalg.qr(torch.randn(32, 16)).Q
    student = build(large.config.model_copy(update={"width": 16, "heads": 2, "ffn": 24}))
    (item,) = observe(large, [0], [torch.randint(0, 60, (40, 6))])
    reduce_layers(student, layers_of(large), large.embeddings, basis, [item])
    (layer,), (source,) = layers_of(student), layers_of(large)
    heads = pick_heads(source, basis, item.mixed, 2)
    neurons = pick_neurons(source, basis, item.active, 24)
    mean = item.entering.mean.float()
    assert float(outside(mean, basis).norm()) > 0.1
    for name in ("query", "key", "value"):
        ours, theirs = layer.get_submodule(name)(mean @ basis), source.get_submodule(name)(mean)[heads]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    mean = item.between.mean.float()
    torch.testing.assert_close(layer.up(mean @ basis), source.up(mean)[neurons], rtol=0, atol=1e-5)
    for ours, theirs, kept, inputs in (
        (layer.output, source.output, heads, item.mixed.mean.float()),
        (layer.down, source.down, neurons, item.active.mean.float()),
    ):
        torch.testing.assert_close(ours(inputs[kept]), theirs(inputs) @ basis, rtol=0, atol=1e-5)


@torch.no_grad()
def test_every_axis_of_a_narrower_student_has_the_mean_and_deviation_of_the_teacher(
    wordpiece: Tokenizer, texts: list[str]
) -> None:
    teacher = bert()
    made = started(teacher, wordpiece, texts, width=16, heads=2, ffn=20)
    basis, student = made.projector["weight"], student_of(made)
    assert "width 32 → 16, ffn 48 → 20" in made.note
    torch.testing.assert_close(basis.T @ basis, torch.eye(16), rtol=0, atol=1e-5)
    own: list[Tensor] = []
    layers_of(student)[-1].register_forward_hook(lambda _, __, out: own.append(out.flatten(0, 1)))
    theirs = []
    for text in texts:
        ids = torch.tensor([wordpiece.encode(text).ids])
        student(torch.tensor([made.tokenizer.encode(text).ids]), torch.ones_like(ids))
        theirs.append(teacher(input_ids=ids).last_hidden_state.flatten(0, 1))
    found, wide = torch.cat(own), torch.cat(theirs)
    torch.testing.assert_close(found.mean(0), (wide @ basis).mean(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.std(0), (wide @ basis).std(0), rtol=1e-3, atol=0)
    widened = found @ basis.T + made.projector["bias"]
    torch.testing.assert_close(widened.mean(0), wide.mean(0), rtol=0, atol=1e-4)


@torch.no_grad()
def test_tables_hold_what_the_layer_norm_of_the_teacher_makes_of_them_but_for_its_division() -> None:
    torch.manual_seed(4)
    large = build(Config(layers=1, width=32, heads=4, ffn=36, vocabulary=60, max_length=8))
    randomised(large, 8)
    student = build(large.config.model_copy(update={"width": 16, "heads": 2, "ffn": 24}))
    basis = torch.linalg.qr(torch.randn(32, 16)).Q
    seen = observe(large, [0], [torch.randint(0, 60, (40, 6))])
    reduce_layers(student, layers_of(large), large.embeddings, basis, seen)
    large.embeddings.norm.bias.zero_()
    scales = []
    for own, table in (
        (student.embeddings.word.weight, large.embeddings.word.weight),
        (student.embeddings.position, large.embeddings.position),
    ):
        undivided = large.embeddings.norm(table) * table.std(1, correction=0, keepdim=True)
        ratio = own / (undivided @ basis)
        torch.testing.assert_close(ratio, ratio.median().expand_as(ratio), rtol=1e-2, atol=0)
        scales.append(float(ratio.median()))
    assert scales[0] == pytest.approx(scales[1], rel=1e-4)
    assert float(student.embeddings.word.weight.std(1).mean()) == pytest.approx(1, rel=1e-4)


@torch.no_grad()
def test_between_two_layers_the_stream_is_what_the_next_layer_read_in_the_teacher(
    wordpiece: Tokenizer, texts: list[str]
) -> None:
    teacher = bert(num_hidden_layers=6)
    made = started(teacher, wordpiece, texts, layers=2, width=16, heads=2)
    own: list[Tensor] = []
    student = student_of(made)
    layers_of(student)[0].register_forward_hook(lambda _, __, out: own.append(out.flatten(0, 1)))
    states: list[list[Tensor]] = [[] for _ in range(7)]
    for text in texts:
        ids = torch.tensor([wordpiece.encode(text).ids])
        student(torch.tensor([made.tokenizer.encode(text).ids]), torch.ones_like(ids))
        for found, state in zip(states, teacher(input_ids=ids, output_hidden_states=True).hidden_states, strict=True):
            found.append(state.flatten(0, 1))
    means = [(torch.cat(found) @ made.projector["weight"]).mean(0) for found in states]
    gaps = [float((torch.cat(own).mean(0) - mean).abs().max()) for mean in means]
    assert gaps[5] < 1e-4, "layers 3 and 6 are used, so the sixth reads the fifth's output"
    assert min(gaps[:5] + gaps[6:]) > 1e-2


def test_the_basis_holds_the_directions_of_most_variance_and_no_axis_has_much_more_than_another() -> None:
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64)).Q
    sizes = torch.logspace(4, -4, 24, dtype=torch.float64)
    covariance = turn * sizes @ turn.T
    basis = rotated_axes(covariance, 8).double()
    axes = torch.diagonal(basis.T @ covariance @ basis)
    assert float(axes.sum() / sizes[:8].sum()) == pytest.approx(1, abs=1e-5)
    assert float(axes.max() / axes.min()) < float(sizes[0] / sizes[7]) / 5
