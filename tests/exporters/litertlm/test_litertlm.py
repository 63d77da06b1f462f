"""Bundles against the student: run by LiteRT and by LiteRT-LM, read back, and changed on purpose."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from litertlm_students import BUCKETS, OWN, TEMPLATE, decoder, rewritten, tokenizer

from edgedistill import catalog
from edgedistill.errors import DataError, StageError, VerificationError
from edgedistill.exporters import litertlm, tflite
from edgedistill.exporters.litertlm import chat
from edgedistill.exporters.litertlm.parsing import parse
from edgedistill.exporters.litertlm.proof import prove
from edgedistill.exporters.litertlm.reading import model_of
from edgedistill.exporters.litertlm.running import Engine
from edgedistill.exporters.litertlm.speech import speech_of
from edgedistill.exporters.tflite import proving_texts
from edgedistill.exporters.tflite.decoding import WriteSlots
from edgedistill.plan.size import file_size
from edgedistill.plan.size.bundle import bytes_around, tokenizer_bytes
from edgedistill.quant import FrozenStudent
from edgedistill.specs import QuantScheme
from edgedistill.students.llama.module import Write

Made = tuple[FrozenStudent, Path]
PROMPTS = ("First, the", "What is 2", "0123 dog")


def greedy(module: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(module(torch.tensor([ids], dtype=torch.int32)).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def speaks_as_the_student(frozen: FrozenStudent, path: Path) -> None:
    """LiteRT-LM reads the prompts in pieces, the first token its own."""
    module, library = frozen.to_module(), speech_of(frozen).tokenizer
    runner = litertlm.load(path)
    with runner.engine() as engine:
        for prompt in PROMPTS:
            ids = library.encode(prompt).ids
            assert ids[0] == 0
            assert engine.tokenize(prompt) == ids[1:]
            expected = greedy(module, ids, 10)
            assert runner.model.text().continued(ids, 10) == expected
            stopped = expected[: next((n for n, token in enumerate(expected) if token in (2, 3)), 10)]
            assert engine.continued(prompt, 10) == (engine.detokenize(stopped) if stopped else "")


def test_both_runtimes_continue_texts_as_the_student_does(made: Made) -> None:
    speaks_as_the_student(*made)


def test_a_text_up_to_the_last_slot_is_the_students_however_it_is_read(made: Made) -> None:
    """The window of local layers is 5; the last piece of the prompt has room for fewer tokens than it takes."""
    frozen, path = made
    ids = np.random.default_rng(3).integers(0, 150, 30).tolist()
    with torch.no_grad():
        logits = frozen.to_module()(torch.tensor([ids], dtype=torch.int32)).logits[0].numpy()
    runner = litertlm.load(path)
    found = runner.run("any", {"input_ids": np.array([ids], np.int32)})["logits"][0]
    assert np.median(np.abs(found - logits).max(-1)) < 1e-5 * np.abs(logits).max()
    for cut in (3, 26, 29):
        text = runner.model.text()
        text.read(ids[:cut])
        rest = np.stack([text.step(token) for token in ids[cut:]])
        assert np.median(np.abs(rest - logits[cut:]).max(-1)) < 1e-5 * np.abs(logits).max()
        with pytest.raises(DataError, match="30 tokens and 1 more do not fit the 30"):
            text.step(0)


def test_caches_are_written_alike_by_both_forms() -> None:
    """Ours, and TFLite's, where tokens that come behind the last slot are left out."""
    random = torch.Generator().manual_seed(0)
    for count in (1, 4):
        for position in range(12 if count > 1 else 11):
            slots, new = (torch.randn(1, 2, n, 3, generator=random) for n in (11, count))
            at = torch.tensor([min(position, 11)], dtype=torch.int32)
            assert torch.equal(WriteSlots()(slots, new, at), Write()(slots, new, at)), (count, position)


def test_the_model_inside_is_what_format_tflite_writes(made: Made, tmp_path: Path) -> None:
    """And its first layer that differs from another student's is named, for a text and for a single call."""
    frozen, path = made
    with model_of(path, parse(path)) as model:
        tflite.verify(frozen, model)
        runner = tflite.load(model)
        assert isinstance(runner, tflite.DecoderRunner)
        assert sorted(runner.calls.signatures) == ["decode", "prefill_8"]
        calls = [frozen.sample(s, np.random.default_rng(0)) for s in runner.calls.signatures.values()]
    text = {"input_ids": np.array([[5, 9, 11, 4]], np.int32)}
    weight = frozen.quantized["layers.1.key.weight"]
    wrong = dataclasses.replace(
        frozen, quantized=frozen.quantized | {"layers.1.key.weight": weight._replace(codes=-weight.codes - 1)}
    )
    for feeds in (text, *calls):
        assert litertlm.first_divergence(frozen, path, feeds) is None
        told = litertlm.first_divergence(wrong, path, feeds)
        assert told is not None
        assert told.startswith("layers.1.key:")
    assert 1 < litertlm.largest_value(path, text)[0] < 2e4


def test_what_a_bundle_says_about_texts_is_compared_with_the_student(made: Made, tmp_path: Path) -> None:
    frozen, path = made
    changes: dict[str, dict[str, Any]] = {
        "start and end tokens": {"stops": (3,)},
        "longest text": {"start": None},
        "chat template": {"shipped_template": "{{ messages }}"},
        "its tokenizer": {"tokenizer_bytes": speech_of(frozen).tokenizer_bytes.replace(b"th", b"ht", 1)},
    }
    for told, change in changes.items():
        with pytest.raises(VerificationError, match=told):
            litertlm.verify(frozen, rewritten(frozen, path, tmp_path / "changed.litertlm", **change))
    shorter = dataclasses.replace(frozen, config=frozen.config | {"max_length": 29})
    with pytest.raises(VerificationError):
        litertlm.verify(shorter, path)
    litertlm.verify(frozen, rewritten(frozen, path, tmp_path / "same.litertlm"))


def test_litert_lm_itself_finds_what_reading_cannot(made: Made, tmp_path: Path) -> None:
    """A tokenizer that splits otherwise, another start token, a template as it came: each alone is enough."""
    frozen, path = made
    speech = speech_of(frozen)
    merges = tokenizer()
    merges["model"]["merges"] = merges["model"]["merges"][:3]
    other = speech_of(dataclasses.replace(frozen, task=frozen.task | {"tokenizer_json": merges}))
    for told, change in {
        "splits": {"tokenizer_bytes": other.tokenizer_bytes},
        "continues": {"start": 77},
        "renders": {"shipped_template": TEMPLATE},
    }.items():
        with pytest.raises(VerificationError, match=f"LiteRT-LM {told}"):
            prove(frozen, speech, rewritten(frozen, path, tmp_path / f"{told}.litertlm", **change))


def test_what_litert_lm_answers_is_held_to_the_student_and_number_by_number(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the very texts that it answered; how likely it finds texts, to a part in 10^4."""
    frozen, path = made
    speech, weight = speech_of(frozen), frozen.quantized["layers.1.key.weight"]
    codes = weight.codes.copy()
    codes[3] = -codes[3]
    wrong = frozen.quantized | {"layers.1.key.weight": weight._replace(codes=codes)}
    with pytest.raises(VerificationError, match=r"read in parts .* first differs at layers\.1\.key: "):
        prove(dataclasses.replace(frozen, quantized=wrong), speech, path)
    scored = Engine.scored
    for change in (lambda score: score + 2e-4, lambda score: float("nan")):
        monkeypatch.setattr(Engine, "scored", lambda *asked, change=change: [change(n) for n in scored(*asked)])
        with pytest.raises(VerificationError, match="LiteRT-LM finds the logarithms of how likely"):
            prove(frozen, speech, path)
    monkeypatch.setattr(Engine, "scored", lambda self, prompt, text: scored(self, prompt, text)[:-1])
    with pytest.raises(VerificationError, match="LiteRT-LM finds the logarithms of how likely"):
        prove(frozen, speech, path)


def test_published_kinds_of_templates_are_repaired() -> None:
    """By Jinja's own rules: contents as lists, and as texts, give what the original gives for texts."""
    templates = {
        "attribute": "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}",
        "loop": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}<s>{% endif %}"
        "{{ '[' + message['role'] + ']' + message['content'] }}{% endfor %}{% generation %}{% endgeneration %}",
        "special": "{{ bos_token }}{{ messages[0]['content'] | trim }}{{ eos_token }}{{ unk_token }}",
    }
    tokens = {"bos": "<s>", "eos": "</s>", "unk": '"<\\n>'}
    for template in templates.values():
        for messages in chat.CHATS:
            parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
            expected = chat.rendered(template, messages, tokens | {"bos": ""})
            shipped = chat.repaired(template, tokens)
            assert chat.rendered(shipped, parts, {}) == chat.rendered(shipped, messages, {}) == expected
    assert chat.rendered("{{ raise_exception('no system') }}", chat.CHATS[0], {}) is None
    with pytest.raises(StageError, match=r"no Jinja template: line 1"):
        chat.rendered("{% for %}", chat.CHATS[0], {})


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ({"tokenizer_json": None}, "needs a tokenizer"),
        ({"tokenizer_json": {"model": {}}}, "not one of the tokenizers library"),
        ({"special_tokens": {"eos": "<never>"}}, "no token: <never>"),
        ({"chat_template": "<|begin|>{{ messages[0]['content'] }}"}, "writes '<|begin|>' itself"),
        ({"chat_template": "{% if %}"}, "no Jinja template"),
    ],
)
def test_a_student_that_cannot_speak_is_refused_before_it_is_converted(
    task: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=told.replace("|", r"\|")):
        litertlm.export(decoder("llama", **task), BUCKETS, tmp_path / "no.litertlm")
    assert not list(tmp_path.iterdir())


def test_what_a_tokenizer_says_decides_start_and_stops() -> None:
    plain = tokenizer() | {"post_processor": None}
    found = speech_of(decoder("llama", tokenizer_json=plain))
    assert (found.start, found.stops) == (None, (2, 3))
    given = {"bos": "<|begin|>", "eos": "<|endoftext|>"}
    assert speech_of(decoder("llama", tokenizer_json=plain, special_tokens=given)).start == 0  # the template begins so
    assert speech_of(decoder("llama", tokenizer_json=plain, special_tokens=given, chat_template="x")).start is None
    renamed = tokenizer()
    for token in renamed["added_tokens"]:
        token["content"] = token["content"].replace("im_end", "a").replace("endoftext", "b")
    renamed["model"]["vocab"] = {
        key.replace("im_end", "a").replace("endoftext", "b"): value for key, value in renamed["model"]["vocab"].items()
    }
    with pytest.raises(StageError, match="name the token that ends a text"):
        speech_of(decoder("llama", tokenizer_json=renamed, special_tokens={}))
    small = decoder("llama")
    with pytest.raises(StageError, match="120 tokens, the student's vocabulary 100"):
        speech_of(dataclasses.replace(small, config=small.config | {"vocabulary": 100}))


def test_a_tied_head_counts_where_litert_cannot_run_it(tmp_path: Path) -> None:
    """In groups it needs bf16 scales and int8 activations, as any linear layer does."""
    groups = decoder("gemma3").scheme.weights
    for scheme in (
        QuantScheme(embeddings=groups, activations="float", scale_dtype="bf16"),
        QuantScheme(embeddings=groups),
    ):
        with pytest.raises(StageError, match=r"its head is embedding\.weight"):
            tflite.export(decoder("gemma3", scheme), BUCKETS, tmp_path / "no.tflite")


def test_two_processes_write_the_same_bundle(made: Made, tmp_path: Path) -> None:
    """Of one .tflite; that this is the same in every process is a test of the contract."""
    frozen, path = made
    frozen.save(tmp_path)
    with model_of(path, parse(path)) as model:
        (tmp_path / "model.tflite").write_bytes(model.read_bytes())
    code = (
        "import sys; from pathlib import Path; from edgedistill.quant import FrozenStudent\n"
        "from edgedistill.exporters.litertlm.speech import speech_of\n"
        "from edgedistill.exporters.litertlm.writing import write\n"
        "folder = Path(sys.argv[1]); frozen = FrozenStudent.load(folder)\n"
        "write(frozen, speech_of(frozen), folder / 'model.tflite', folder / 'again.litertlm')"
    )
    environment = os.environ | {"PYTHONHASHSEED": "321", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert (tmp_path / "again.litertlm").read_bytes() == path.read_bytes()


def test_a_bundle_is_verified_at_the_command_line(made: Made, tmp_path: Path, cli: Any) -> None:
    frozen, path = made
    frozen.save(tmp_path)
    done = cli("verify", path, "--student", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["format"], told["tensors"]) == ("litertlm", len(frozen.quantized))
    assert told["entry_points"] == ["any", "decode", "prefill_8"]
    other = rewritten(frozen, path, tmp_path / "other.litertlm", stops=(3,))
    done = cli("verify", other, "--student", tmp_path)
    assert done.returncode == 1
    assert "start and end tokens" in done.stderr


def test_a_bundle_says_what_it_needs(made: Made) -> None:
    found = litertlm.audit(made[1])
    assert found.runtime_min.startswith("LiteRT-LM with TensorFlow Lite 2.")
    assert found.operators["DYNAMIC_UPDATE_SLICE"] == 8
    assert any("CPU" in risk for risk in found.risks)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [name for name in OWN if name != "gemma3"])
def test_every_architecture_speaks(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = QuantScheme(activations="float" if architecture == "llama" else "dynamic_int8")
    frozen, path = decoder(architecture, scheme), tmp_path / "model.litertlm"
    litertlm.export(frozen, (4, 16), path)
    litertlm.verify(frozen, path)
    speaks_as_the_student(frozen, path)
    if scheme.activations == "float":  # from end to end, without what tells of each layer
        moved = frozen.floats | {"norm.weight": frozen.floats["norm.weight"] * np.float32(1.0001)}
        monkeypatch.setattr(proving_texts, "follow", lambda *asked: None)
        with pytest.raises(VerificationError, match=r"It first differs at the logits of the whole text: "):
            prove(dataclasses.replace(frozen, floats=moved), speech_of(frozen), path)


def test_the_size_of_a_bundle_was_known_before(made: Made) -> None:
    """Its blocks are counted from the tokenizer; the .tflite in it is predicted as one that is alone."""
    frozen, path = made
    config = catalog.load_plugin("students", "llama").Config.decode(frozen.config, "config")
    spent = tokenizer_bytes(frozen.task["tokenizer_json"])
    with model_of(path, parse(path)) as model:
        alone = model.stat().st_size
    for name, real in (("litertlm", path.stat().st_size), ("tflite", alone)):
        found = file_size(name, frozen.tensors, frozen.scheme, BUCKETS, config, tokenizer_bytes=spent)
        assert found.total_mb * 1e6 == pytest.approx(real, rel=0.01)
    assert path.stat().st_size - alone == bytes_around(config.vocabulary, spent)
