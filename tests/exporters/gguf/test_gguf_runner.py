"""What llama.cpp is given and answers."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_students import BUCKETS, rewritten, student

from edgedistill.errors import DataError, StageError, VerificationError
from edgedistill.exporters import gguf
from edgedistill.exporters.gguf.parsing import Value


def test_signatures_are_the_buckets_and_of_a_foreign_file_one_of_any_length(made: Any, tmp_path: Path) -> None:
    frozen, path = made("bert")
    with contextlib.closing(gguf.load(path)) as found:
        assert tuple(found.signatures.values()) == frozen.signatures(BUCKETS)
    frozen, path = made("qwen3")

    def forget(metadata: dict[str, Value], _: Any) -> None:
        for key in [key for key in metadata if key.startswith("edgedistill.")]:
            metadata.pop(key)

    foreign = rewritten(path, tmp_path / "foreign.gguf", forget)
    with contextlib.closing(gguf.load(path)) as ours, contextlib.closing(gguf.load(foreign)) as theirs:
        assert tuple(ours.signatures.values()) == frozen.signatures(BUCKETS)
        assert list(theirs.signatures) == ["tokens"]
        assert theirs.signatures["tokens"].outputs[0].shape == (1, -1, 160)
        feeds = {"input_ids": np.arange(48, dtype=np.int32)[None]}
        assert np.array_equal(theirs.run("tokens", feeds)["logits"], ours.run("length_48", feeds)["logits"])
    with pytest.raises(VerificationError, match="not exported by this package"):
        gguf.read_back(foreign)


def test_runs_do_not_depend_on_each_other_and_threads_change_little(made: Any, runner: Any) -> None:
    short, long = ({"input_ids": np.full((1, n), 5, np.int32)} for n in BUCKETS)
    first = runner.run("length_8", short)["logits"]
    runner.run("length_48", long)
    again = runner.run("length_8", short)["logits"]
    assert first.dtype == np.float32
    assert np.abs(first - again).max() < 1e-5
    with contextlib.closing(gguf.load(made("llama")[1], threads=2)) as wide:
        assert np.abs(wide.run("length_8", short)["logits"] - first).max() < 1e-5


def test_padding_of_an_encoder_is_not_seen(made: Any) -> None:
    frozen, path = made("bert")
    ids, mask = np.zeros((1, 48), np.int32), np.zeros((1, 48), np.int32)
    ids[0, :6], mask[0, :6] = (5, 9, 2, 7, 7, 3), 1
    with contextlib.closing(gguf.load(path)) as found:
        one = found.run("length_48", {"input_ids": ids, "attention_mask": mask})["logits"]
        other = found.run("length_8", {"input_ids": ids[:, :8], "attention_mask": mask[:, :8]})["logits"]
        assert one.shape == (1, frozen.config["classes"])
        assert np.array_equal(one, other)
        for bad in (np.zeros_like(mask), 1 - mask):
            with pytest.raises(DataError, match="ones, then zeros"):
                found.run("length_48", {"input_ids": ids, "attention_mask": bad})


def test_inputs_that_do_not_fit_are_refused(runner: Any) -> None:
    good = np.ones((1, 8), np.int32)
    for bad in (good[:, :7], good.astype(np.int64), good[0], None):
        with pytest.raises(DataError, match=r"takes input_ids as int32\[1, 8\]"):
            runner.run("length_8", {} if bad is None else {"input_ids": bad})
    for id_ in (-1, 160):
        with pytest.raises(DataError, match="from 0 to 159"):
            runner.run("length_8", {"input_ids": good * id_})


def test_a_closed_runner_says_so(made: Any) -> None:
    found = gguf.load(made("llama")[1])
    found.close()
    found.close()
    with pytest.raises(StageError, match="closed"):
        found.run("length_8", {"input_ids": np.ones((1, 8), np.int32)})
    with pytest.raises(StageError, match="closed"):
        found.tokenize("a")


def test_nothing_is_written_to_the_terminal(made: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gguf.export(student("llama_tied"), [8], tmp_path / "quiet.gguf")
    with contextlib.closing(gguf.load(tmp_path / "quiet.gguf")) as found:
        found.run("length_8", {"input_ids": np.ones((1, 8), np.int32)})
    assert capfd.readouterr() == ("", "")
