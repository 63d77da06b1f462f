"""What is asked of a bundle before it ships: that LiteRT-LM reads, splits and continues texts as the student does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from edgedistill.errors import VerificationError
from edgedistill.exporters._tokens import texts_to_try
from edgedistill.exporters.litertlm.chat import CHATS, rendered
from edgedistill.exporters.litertlm.running import Engine, load
from edgedistill.exporters.litertlm.speech import Speech
from edgedistill.quant.frozen import FrozenStudent

_LONGEST_ANSWER = 8
# Of two tokens whose logits are this near, as a share of the largest, the runtime may take either: what rounding does,
# and where activations are int8, a value on the boundary of two codes.
_TIES = {"float": 1e-4, "dynamic_int8": 0.02}


def prove(frozen: FrozenStudent, speech: Speech, path: Path) -> None:
    """Run the bundle with LiteRT-LM.

    Raises:
        MissingDependency: if litert-lm-api is not installed.
        StageError: if LiteRT-LM refuses the bundle.
        VerificationError: if a text is split otherwise, a chat rendered otherwise, or a prompt continued otherwise.
    """
    texts = texts_to_try(frozen.task["tokenizer_json"])
    with load(path).engine() as engine:
        for text in texts:
            expected, found = speech.tokenizer.encode(text, add_special_tokens=False).ids, engine.tokenize(text)
            if found != expected:
                raise VerificationError(
                    f"LiteRT-LM splits {text!r} into {found[:12]}, the student's tokenizer into {expected[:12]}."
                )
        if speech.template is not None:
            _check_chats(engine, speech, speech.template)
        _check_answers(frozen, speech, engine, texts)


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


def _check_answers(frozen: FrozenStudent, speech: Speech, engine: Engine, texts: Sequence[str]) -> None:
    """Greedy answers, token by token, to prompts that leave room for them."""
    module, room = frozen.to_module(), int(frozen.config["max_length"]) - _LONGEST_ANSWER
    start = [] if speech.start is None else [speech.start]
    prompts = {text: speech.tokenizer.encode(text, add_special_tokens=False).ids for text in texts}
    fitting = [(text, start + ids) for text, ids in prompts.items() if ids and len(start + ids) <= room]
    if not fitting:
        raise VerificationError(f"no text to try fits max_length = {room + _LONGEST_ANSWER}: give the student more.")
    for text, ids in fitting[:3]:
        answers = _greedy(module, speech, ids, _TIES[frozen.scheme.activations])
        found = engine.continued(text, _LONGEST_ANSWER)
        if found not in [engine.detokenize(answer) if answer else "" for answer in answers]:
            raise VerificationError(
                f"LiteRT-LM continues {text!r} with {found!r}, the student with "
                f"{engine.detokenize(answers[0]) if answers[0] else ''!r}."
            )


@torch.no_grad()
def _greedy(module: torch.nn.Module, speech: Speech, prompt: Sequence[int], tie: float) -> list[list[int]]:
    """The student's most likely answer; where two tokens are as good as equal, the answers with either."""
    growing: list[list[int]] = [[]]
    ended: list[list[int]] = []
    for _ in range(_LONGEST_ANSWER):
        longer = []
        for answer in growing:
            logits = module(torch.tensor([[*prompt, *answer]], dtype=torch.int32)).logits[0, -1]
            near = (logits >= logits.max() - tie * logits.abs().max()).nonzero()[:, 0].tolist()
            near.sort(key=lambda token: -float(logits[token]))
            ended += [answer] * any(token in speech.stops for token in near)
            longer += [[*answer, token] for token in near[:4] if token not in speech.stops]
        growing = longer[:64]
    return [*growing, *ended]
