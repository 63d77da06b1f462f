"""The student's tokenizer: the teacher's, cut to the task, and never unable to write what can be typed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from edgedistill.students.bert import vocabulary
from edgedistill.students.bert.vocabulary import SAFETY, SPECIAL, Trimmed, trim

Subword = Callable[[str], Tokenizer]
TYPABLE = [chr(code) for code in range(33, 127)]
WORDS = ["xylophone", "jazz", "quiz", "zq0", "a1b2", "9lives", "IRAQ", "under_score", "e-mail", "{[(|)]}", "~`^\\"]


def pieces(trimmed: Trimmed) -> list[str]:
    vocabulary = trimmed.tokenizer.get_vocab(with_added_tokens=True)
    return sorted(vocabulary, key=vocabulary.__getitem__)


def assert_can_write_everything_typable(trimmed: Trimmed) -> None:
    for text in [*TYPABLE, *WORDS, "".join(TYPABLE), " ".join(TYPABLE), *("a" + c + "1" + c for c in TYPABLE)]:
        assert "[UNK]" not in trimmed.tokenizer.encode(text).tokens, text


@pytest.mark.parametrize("limit", [100, 400, 3000, 10**6])
def test_everything_that_can_be_typed_is_written_without_unknown_pieces(
    wordpiece: Tokenizer, texts: list[str], limit: int
) -> None:
    assert_can_write_everything_typable(trim(wordpiece, texts, limit))


@pytest.mark.parametrize("limit", [100, 400])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_everything_that_can_be_typed_is_written_also_without_a_wordpiece_teacher(
    subword: Subword, texts: list[str], kind: str, limit: int
) -> None:
    assert_can_write_everything_typable(trim(subword(kind), texts, limit))


@pytest.mark.parametrize("limit", [100, 400, 10**6])
@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_the_pieces_are_counted_as_they_are_kept(
    wordpiece: Tokenizer, subword: Subword, texts: list[str], kind: str, limit: int
) -> None:
    def teacher() -> Tokenizer:
        return Tokenizer.from_str((wordpiece if kind == "wordpiece" else subword(kind)).to_str())

    assert vocabulary.pieces(teacher(), texts, limit) == len(trim(teacher(), texts, limit).sources)


def test_special_tokens_come_first_and_frame_every_text(wordpiece: Tokenizer, texts: list[str]) -> None:
    trimmed = trim(wordpiece, texts, 400)
    assert [trimmed.tokenizer.token_to_id(name) for name in SPECIAL] == [0, 1, 2, 3, 4]
    ids = trimmed.tokenizer.encode("send the money [MASK]").ids
    assert (ids[0], ids[-1], ids[-2]) == (2, 3, 4)
    assert trimmed.sources[:5] == ((0,), (100,), (101,), (102,), (103,))


def test_no_more_pieces_than_the_limit_are_kept_and_the_most_used_ones_are(
    wordpiece: Tokenizer, texts: list[str]
) -> None:
    safety = sum(p.removeprefix("##") in SAFETY for p in wordpiece.get_vocab())
    limit = len(SPECIAL) + safety + 6
    trimmed = trim(wordpiece, [*texts, *["transfer card money account"] * 100, "gasoline"], limit)
    assert len(pieces(trimmed)) == len(trimmed.sources) == len(trimmed.counts) == limit
    assert {"transfer", "card", "money", "account"} < set(pieces(trimmed))
    assert "gasoline" not in pieces(trimmed)


def test_the_longest_piece_that_is_left_is_taken(wordpiece: Tokenizer, texts: list[str]) -> None:
    trimmed = trim(wordpiece, [*texts, "trans port"], 10**6)
    assert {"trans", "transfer"} < set(pieces(trimmed))
    assert trimmed.tokenizer.encode("transfer").tokens == ["[CLS]", "transfer", "[SEP]"]
    assert trimmed.tokenizer.encode("transfers transq").tokens[1:-1] == ["transfer", "##s", "trans", "##q"]


def test_ids_mean_the_pieces_of_the_teacher_when_nothing_was_cut(wordpiece: Tokenizer, texts: list[str]) -> None:
    trimmed = trim(wordpiece, texts, 10**6)
    for text in texts:
        own = trimmed.tokenizer.encode(text)
        theirs = wordpiece.encode(text)
        assert own.tokens == theirs.tokens
        assert [trimmed.sources[index] for index in own.ids] == [(index,) for index in theirs.ids]


def test_every_source_is_the_piece_of_the_same_name(wordpiece: Tokenizer, texts: list[str]) -> None:
    trimmed = trim(wordpiece, texts, 300)
    assert [wordpiece.id_to_token(ids[0]) for ids in trimmed.sources] == pieces(trimmed)


def test_counts_are_the_uses_in_the_texts_plus_one(wordpiece: Tokenizer) -> None:
    trimmed = trim(wordpiece, ["card card card money", "card"], 10**6)
    count = dict(zip(pieces(trimmed), trimmed.counts, strict=True))
    assert (count["card"], count["money"], count["[SEP]"], count["x"]) == (5, 2, 3, 1)


def test_upper_case_accents_and_line_breaks_are_read_as_the_teacher_reads_them(
    wordpiece: Tokenizer, texts: list[str]
) -> None:
    trimmed = trim(wordpiece, texts, 10**6)
    plain = trimmed.tokenizer.encode("transfer my card").ids
    assert trimmed.tokenizer.encode("TRANSFÉR  my\ncard").ids == plain


def test_a_teacher_that_truncates_or_pads_does_not_shorten_what_is_counted(wordpiece: Tokenizer) -> None:
    wordpiece.enable_truncation(3)
    trimmed = trim(wordpiece, ["card money account"], 10**6)
    assert {"card", "money", "account"} < set(pieces(trimmed))
    assert len(trimmed.tokenizer.encode("card money account").ids) == 5


def test_scripts_that_the_texts_show_are_kept_to_the_last_character(wordpiece: Tokenizer, texts: list[str]) -> None:
    shown = ["привет мир", "wie geht es straße", "東京 大学"]
    trimmed = trim(wordpiece, [*texts, *shown], 300)
    for text in shown:
        if "[UNK]" not in wordpiece.encode(text).tokens:
            assert "[UNK]" not in trimmed.tokenizer.encode(text).tokens, text


def test_a_trimmed_tokenizer_is_the_same_after_it_was_saved(
    wordpiece: Tokenizer, texts: list[str], tmp_path: Path
) -> None:
    trimmed = trim(wordpiece, texts, 400)
    trimmed.tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [*texts, *WORDS]:
        assert loaded.encode(text).ids == trimmed.tokenizer.encode(text).ids
    assert loaded.decode(loaded.encode("transfer my money").ids) == "transfer my money"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_without_a_wordpiece_teacher_each_piece_remembers_the_pieces_of_its_text(
    subword: Subword, texts: list[str], kind: str
) -> None:
    teacher = subword(kind)
    trimmed = trim(teacher, texts, 400)
    names = pieces(trimmed)
    assert names[:5] == list(SPECIAL)
    assert len(names) == len(trimmed.sources) == len(trimmed.counts)
    assert {"card", "money"} < set(names)
    for name, ids in zip(names[5:], trimmed.sources[5:], strict=True):
        assert teacher.decode(list(ids)).strip() == name.removeprefix("##"), name
    tokens = trimmed.tokenizer.encode("Send the money today").tokens
    assert tokens == ["[CLS]", "send", "the", "money", "today", "[SEP]"]


CHILD = """
import hashlib, sys
from tokenizers import Tokenizer
from edgedistill.students.bert.vocabulary import trim
found = trim(Tokenizer.from_file(sys.argv[1]), open(sys.argv[2]).read().splitlines(), 200)
print(hashlib.sha256((found.tokenizer.to_str() + repr(found.sources) + repr(found.counts)).encode()).hexdigest())
"""


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_every_process_finds_the_same_vocabulary(
    subword: Subword, wordpiece: Tokenizer, texts: list[str], tmp_path: Path, kind: str
) -> None:
    teacher = wordpiece if kind == "wordpiece" else subword(kind)
    teacher.save(str(tmp_path / "teacher.json"))
    (tmp_path / "texts").write_text("\n".join(texts))
    command = [sys.executable, "-c", CHILD, str(tmp_path / "teacher.json"), str(tmp_path / "texts")]
    hashes = {
        subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("0", "1", "2", "3")
    }
    assert len(hashes) == 1
