"""What is asked of a bundle before it ships: LiteRT-LM splits texts as the student does, and goes on as LiteRT."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from edgedistill.errors import VerificationError
from edgedistill.exporters._tokens import texts_to_try
from edgedistill.exporters.litertlm.chat import CHATS, rendered
from edgedistill.exporters.litertlm.running import BundleRunner, Engine, load
from edgedistill.exporters.litertlm.speech import Speech
from edgedistill.quant.frozen import FrozenStudent

_LONGEST_ANSWER = 8


def prove(frozen: FrozenStudent, speech: Speech, path: Path) -> None:
    """Run the bundle with LiteRT-LM.

    Raises:
        MissingDependency: if litert-lm-api is not installed.
        StageError: if LiteRT-LM refuses the bundle.
        VerificationError: if a text is split otherwise, a chat rendered otherwise, or a prompt continued otherwise.
    """
    texts = texts_to_try(frozen.task["tokenizer_json"])
    runner = load(path)
    with runner.engine() as engine:
        for text in texts:
            expected, found = speech.tokenizer.encode(text, add_special_tokens=False).ids, engine.tokenize(text)
            if found != expected:
                raise VerificationError(
                    f"LiteRT-LM splits {text!r} into {found[:12]}, the student's tokenizer into {expected[:12]}."
                )
        if speech.template is not None:
            _check_chats(engine, speech, speech.template)
        _check_answers(frozen, speech, runner, engine, texts)


def _check_chats(engine: Engine, speech: Speech, template: str) -> None:
    for chat in CHATS:
        expected = rendered(template, chat, speech.tokens | {"bos": ""})
        if expected is None:  # some templates know no system message
            continue
        parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in chat]
        for given in (chat, parts):
            found = engine.rendered(given)
            if found != expected:
                raise VerificationError(
                    f"LiteRT-LM renders a chat as {found!r} (empty: it fails), Jinja as {expected!r}: write the "
                    "chat_template in what both know."
                )


def _check_answers(
    frozen: FrozenStudent, speech: Speech, runner: BundleRunner, engine: Engine, texts: Sequence[str]
) -> None:
    """Greedy answers, token by token, to prompts that leave room for them, equal to those of LiteRT.

    LiteRT is what the model inside was compared with the student in, layer by layer. The student's own greedy answers
    say less: of a published model the best two tokens are often within what rounding does. Of SmolLM2-135M with int8
    activations LiteRT-LM answered as LiteRT, 16 tokens to each of 11 prompts, where 5 of 5 differ from the student's.
    """
    room = int(frozen.config["max_length"]) - _LONGEST_ANSWER
    start = [] if speech.start is None else [speech.start]
    prompts = {text: speech.tokenizer.encode(text, add_special_tokens=False).ids for text in texts}
    fitting = [(text, start + ids) for text, ids in prompts.items() if ids and len(start + ids) <= room]
    if not fitting:
        raise VerificationError(f"no text to try fits max_length = {room + _LONGEST_ANSWER}: give the student more.")
    for text, ids in fitting:
        tokens = runner.model.text().continued(ids, _LONGEST_ANSWER)
        tokens = list(takewhile(lambda token: token not in speech.stops, tokens))
        expected, found = engine.detokenize(tokens) if tokens else "", engine.continued(text, _LONGEST_ANSWER)
        if found != expected:
            raise VerificationError(f"LiteRT-LM continues {text!r} with {found!r}, LiteRT with {expected!r}.")
