"""Students that start from their teacher's layers: exact where sizes agree, lossless where what is cut is dead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from edgedistill.errors import SpecError, TeacherError
from edgedistill.plan import stages
from edgedistill.specs import StudentSpec
from edgedistill.students.bert import Config
from edgedistill.students.bert.layers import uniform_map
from edgedistill.students.bert.module import BertClassifier, Layer, build
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
from edgedistill.students.bert.start import Started, start
from edgedistill.teachers._network import TeacherNetwork

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
