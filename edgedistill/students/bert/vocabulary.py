"""The student's tokenizer: the teacher's WordPiece vocabulary cut to what the task needs, plus a safety set.

A piece that is cut is never lost as text: WordPiece takes the longest pieces that are left, down to single characters,
and every printable ASCII character is kept, so `[UNK]` stands only for scripts the task never showed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUES = "##"
SAFETY = frozenset(chr(code) for code in range(33, 127))


@dataclass(frozen=True)
class Trimmed:
    """A student's tokenizer. `sources[n]` are the teacher's ids whose text piece n stands for (one id when trimmed).

    `counts[n]` is how often piece n occurs in the texts, plus one.
    """

    tokenizer: Tokenizer
    sources: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]


def trim(teacher: Tokenizer, texts: Sequence[str], limit: int) -> Trimmed:
    """At most `limit` pieces: special tokens, the safety set, characters of the texts, then the pieces they use most.

    A teacher without WordPiece (byte-pair or unigram) cannot be cut this way: a WordPiece vocabulary is trained on the
    texts instead, and each new piece remembers the teacher's pieces of its text.
    """
    if not isinstance(teacher.model, models.WordPiece):
        return _trained(teacher, texts, limit)
    vocabulary = teacher.get_vocab(with_added_tokens=True)
    kept = _kept(teacher, texts, limit)
    sources = tuple((vocabulary[piece],) if piece in vocabulary else () for piece in kept)
    return _counted(_wordpiece(kept, teacher.normalizer, teacher.pre_tokenizer), sources, texts)


def pieces(teacher: Tokenizer, texts: Sequence[str], limit: int) -> int:
    """How many pieces `trim` would keep, without making the tokenizer."""
    if not isinstance(teacher.model, models.WordPiece):
        return len(_train(texts, limit)[1])
    return len(_kept(teacher, texts, limit))


def _kept(teacher: Tokenizer, texts: Sequence[str], limit: int) -> list[str]:
    vocabulary = teacher.get_vocab(with_added_tokens=True)
    teacher.no_truncation()
    used = Counter(piece for item in teacher.encode_batch(list(texts)) for piece in item.tokens)
    safety = {piece for piece in vocabulary if piece.removeprefix(CONTINUES) in SAFETY}
    characters: Counter[str] = Counter()
    for piece, times in used.items():
        for form in () if piece in SPECIAL else _characters(piece):
            characters[form] += times
    ranked = [piece for piece in (*_ranked(characters), *_ranked(used)) if piece in vocabulary]
    kept = list(dict.fromkeys([*SPECIAL, *sorted(safety), *ranked]))[: max(limit, len(SPECIAL) + len(safety))]
    # in the teacher's order, so that the file reads like the vocabulary it came from
    return [*SPECIAL, *sorted(set(kept) - set(SPECIAL), key=vocabulary.__getitem__)]


def _train(texts: Sequence[str], limit: int) -> tuple[Tokenizer, list[str]]:
    """A WordPiece tokenizer trained on the texts, and its pieces in order."""
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    typable = sorted({letter.lower() for letter in SAFETY})
    safety = [*typable, *(f"{CONTINUES}{letter}" for letter in typable if letter.isalnum())]
    words = (word for text in texts for word, _ in _split(raw, text))
    characters = _ranked(Counter(form for word in words for form in _characters(word)))
    first = list(dict.fromkeys([*SPECIAL, *safety, *characters]))[: max(limit, len(SPECIAL) + len(safety))]
    # given as special tokens, as the trainer numbers the characters it finds itself in another order in each process,
    # and breaks ties by number
    trainer = trainers.WordPieceTrainer(
        vocab_size=limit, special_tokens=first, initial_alphabet=[], limit_alphabet=0, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    vocabulary = raw.get_vocab(with_added_tokens=True)
    return raw, [*SPECIAL, *sorted(set(vocabulary) - set(SPECIAL))]


def _trained(teacher: Tokenizer, texts: Sequence[str], limit: int) -> Trimmed:
    raw, kept = _train(texts, limit)
    sources = []
    for piece in kept:
        text = "" if piece in SPECIAL else piece.removeprefix(CONTINUES)
        lead = "" if piece.startswith(CONTINUES) else " "
        sources.append(tuple(teacher.encode(lead + text, add_special_tokens=False).ids) if text else ())
    return _counted(_wordpiece(kept, raw.normalizer, raw.pre_tokenizer), tuple(sources), texts)


def _split(tokenizer: Tokenizer, text: str) -> list[tuple[str, tuple[int, int]]]:
    found: list[tuple[str, tuple[int, int]]] = tokenizer.pre_tokenizer.pre_tokenize_str(
        tokenizer.normalizer.normalize_str(text)
    )
    return found


def _characters(piece: str) -> list[str]:
    """The pieces of one character that spell `piece`."""
    text = piece.removeprefix(CONTINUES)
    forms = [f"{CONTINUES}{letter}" for letter in text]
    return forms if piece.startswith(CONTINUES) else [text[:1], *forms[1:]]


def _ranked(counts: Counter[str]) -> list[str]:
    return [piece for piece, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]


def _counted(tokenizer: Tokenizer, sources: tuple[tuple[int, ...], ...], texts: Sequence[str]) -> Trimmed:
    used = Counter(index for item in tokenizer.encode_batch(list(texts)) for index in item.ids)
    return Trimmed(tokenizer, sources, tuple(1 + used[index] for index in range(len(sources))))


def _wordpiece(
    pieces: Iterable[str], normalizer: normalizers.Normalizer | None, splitter: pre_tokenizers.PreTokenizer | None
) -> Tokenizer:
    ids = {piece: index for index, piece in enumerate(pieces)}
    built = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", continuing_subword_prefix=CONTINUES))
    built.add_special_tokens([piece for piece in SPECIAL if piece in ids])
    if normalizer is not None:
        built.normalizer = normalizer
    if splitter is not None:
        built.pre_tokenizer = splitter
    built.decoder = decoders.WordPiece(prefix=CONTINUES)
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    return built
