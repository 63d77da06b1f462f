"""What is asked of a bundle before it ships: LiteRT-LM splits texts and continues them as the student does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import torch

from edgedistill.errors import VerificationError
from edgedistill.exporters import tflite
from edgedistill.exporters._memory import give_back
from edgedistill.exporters._tokens import texts_to_try
from edgedistill.exporters.litertlm.chat import CHATS, rendered
from edgedistill.exporters.litertlm.parsing import parse
from edgedistill.exporters.litertlm.reading import model_of
from edgedistill.exporters.litertlm.running import Engine, engine
from edgedistill.exporters.litertlm.speech import Speech
from edgedistill.quant.frozen import FrozenStudent

_LONGEST_ANSWER = 8
_SCORED, _TARGET = 3, "a, b or c?"  # texts that are scored behind as many prompts; it has up to 10 tokens


class _Prompt(NamedTuple):
    """A text, and its ids with those that LiteRT-LM puts before it."""

    text: str
    ids: list[int]


class _Answered(NamedTuple):
    """What LiteRT answered: to each prompt its tokens, and to those that are scored the logits behind them."""

    tokens: list[list[int]]
    scored: list[tflite.Expected]


def prove(frozen: FrozenStudent, speech: Speech, path: Path) -> None:
    """Run the bundle's model with LiteRT, and then the bundle with LiteRT-LM, which is held to it.

    Raises:
        MissingDependency: if litert-lm-api is not installed.
        StageError: if LiteRT-LM refuses the bundle.
        VerificationError: if a text is split otherwise, a chat rendered otherwise, a prompt continued otherwise, or a
            text as likely as another would be.
    """
    texts = texts_to_try(frozen.task["tokenizer_json"])
    prompts = _prompts(frozen, speech, texts)
    answered = _answers(frozen, speech, path, prompts)
    give_back()
    with engine(path) as opened:
        for text in texts:
            expected, found = speech.tokenizer.encode(text, add_special_tokens=False).ids, opened.tokenize(text)
            if found != expected:
                raise VerificationError(
                    f"LiteRT-LM splits {text!r} into {found[:12]}, the student's tokenizer into {expected[:12]}."
                )
        if speech.template is not None:
            _check_chats(opened, speech, speech.template)
        _check_answers(speech, opened, prompts, answered)
    give_back()


def _check_chats(opened: Engine, speech: Speech, template: str) -> None:
    for chat in CHATS:
        expected = rendered(template, chat, speech.tokens | {"bos": ""})
        if expected is None:  # some templates know no system message
            continue
        parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in chat]
        for given in (chat, parts):
            found = opened.rendered(given)
            if found != expected:
                raise VerificationError(
                    f"LiteRT-LM renders a chat as {found!r} (empty: it fails), Jinja as {expected!r}: write the "
                    "chat_template in what both know."
                )


def _prompts(frozen: FrozenStudent, speech: Speech, texts: Sequence[str]) -> list[_Prompt]:
    """The texts that leave room for an answer.

    Raises:
        VerificationError: there is none.
    """
    room = int(frozen.config["max_length"]) - _LONGEST_ANSWER
    start = [] if speech.start is None else [speech.start]
    split = {text: speech.tokenizer.encode(text, add_special_tokens=False).ids for text in texts}
    found = [_Prompt(text, start + ids) for text, ids in split.items() if ids and len(start + ids) <= room]
    if not found:
        raise VerificationError(f"no text to try fits max_length = {room + _LONGEST_ANSWER}: give the student more.")
    return found


def _scored(prompts: Sequence[_Prompt]) -> list[_Prompt]:
    return [prompt for prompt in prompts if len(prompt.ids) > 1][:_SCORED]


def _target(speech: Speech) -> list[int]:
    found: list[int] = speech.tokenizer.encode(_TARGET, add_special_tokens=False).ids
    return found


def _answers(frozen: FrozenStudent, speech: Speech, path: Path, prompts: Sequence[_Prompt]) -> _Answered:
    """What LiteRT answers with the bundle's model, which is the student's.

    LiteRT runs it over each prompt and its answer, and the student reads that very text. Of float activations its own
    logits, in float64, are held to LiteRT's from end to end, so that each token of the answer is its first, or as good
    as that to rounding. With int8 activations nothing sharp can be said of the student's own logits, as one value that
    takes the other one of two codes moves them by 5 %: each of its layers is given what LiteRT's layer was given, and
    is held to one layer's rounding (`tflite.proven`). Of SmolLM2-135M with int8 activations 121 of the 136 tokens that
    LiteRT-LM answered are also the first of the student's own logits, the others up to 1.7 % of the largest behind it;
    of the small students of the tests all are.
    """
    scored, target = _scored(prompts), _target(speech)

    def script(reader: tflite.Reader) -> list[list[int]]:
        found = [reader.continued(prompt.ids, _LONGEST_ANSWER) for prompt in prompts]
        for prompt in scored:
            # LiteRT-LM's own way to read a prompt that it scores behind (`running.Engine.scored`)
            seen = [*prompt.ids[:-2], prompt.ids[-1]]
            reader.read([*seen, *target[:-1]], len(seen) - 1)
        return found

    with model_of(path, parse(path)) as model:
        tokens, expected = tflite.proven(frozen, model, script)
    return _Answered(tokens, expected[len(prompts) :])


def _check_answers(speech: Speech, opened: Engine, prompts: Sequence[_Prompt], answered: _Answered) -> None:
    """Greedy answers, token by token: those of LiteRT; and how likely texts are."""
    for prompt, tokens in zip(prompts, answered.tokens, strict=True):
        tokens = list(takewhile(lambda token: token not in speech.stops, tokens))
        expected, found = opened.detokenize(tokens) if tokens else "", opened.continued(prompt.text, _LONGEST_ANSWER)
        if found != expected:
            raise VerificationError(f"LiteRT-LM continues {prompt.text!r} with {found!r}, LiteRT with {expected!r}.")
    for prompt, logits in zip(_scored(prompts), answered.scored, strict=True):
        _check_scores(speech, opened, prompt.text, logits)


def _check_scores(speech: Speech, opened: Engine, prompt: str, expected: tflite.Expected) -> None:
    """How likely LiteRT-LM finds each token of a text: as likely as the student does, or LiteRT (`_answers`)."""
    target, found = _target(speech), opened.scored(prompt, _TARGET)
    likely = expected.logits.log_softmax(-1)[range(len(target)), target]
    # A token's logit may be off by the limit, and so may the logarithm of the sum over all of them, which LiteRT-LM
    # adds up in float32: n numbers, in any order, to (n - 1) 2^-24 of their sum (Higham 2002, section 4.2).
    allowed = 2 * expected.limit + (expected.logits.shape[-1] - 1) * 2.0**-24
    if len(found) != len(target) or not float((torch.tensor(found) - likely).abs().max()) <= allowed:
        raise VerificationError(
            f"LiteRT-LM finds the logarithms of how likely the tokens of {_TARGET!r} are behind {prompt!r} to be "
            f"{found}, expected are {likely.tolist()}, each to {allowed:.2g}."
        )
