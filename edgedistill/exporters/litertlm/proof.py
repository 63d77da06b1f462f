"""What is asked of a bundle before it ships: LiteRT-LM splits texts and continues them as the student does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import torch

from edgedistill.errors import VerificationError
from edgedistill.exporters._tokens import texts_to_try
from edgedistill.exporters.litertlm.chat import CHATS, rendered
from edgedistill.exporters.litertlm.parsing import parse
from edgedistill.exporters.litertlm.reading import model_of
from edgedistill.exporters.litertlm.running import Engine, load
from edgedistill.exporters.litertlm.speech import Speech
from edgedistill.exporters.tflite import Proof
from edgedistill.quant.frozen import FrozenStudent

_LONGEST_ANSWER = 8
_SCORED, _TARGET = 3, "a, b or c?"  # texts that are scored behind as many prompts; it has up to 10 tokens


def prove(frozen: FrozenStudent, speech: Speech, path: Path) -> None:
    """Run the bundle with LiteRT-LM.

    Raises:
        MissingDependency: if litert-lm-api is not installed.
        StageError: if LiteRT-LM refuses the bundle.
        VerificationError: if a text is split otherwise, a chat rendered otherwise, a prompt continued otherwise, or a
            text as likely as another would be.
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
        with model_of(path, parse(path)) as model:
            proof = Proof(frozen, model, runner.model.calls)
        _check_answers(proof, speech, engine, texts)


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


def _check_answers(proof: Proof, speech: Speech, engine: Engine, texts: Sequence[str]) -> None:
    """Greedy answers, token by token, to prompts that leave room for them: those of LiteRT, which are the student's.

    LiteRT runs the model of the bundle over each prompt and its answer, and the student reads that very text. Of float
    activations its own logits, in float64, are held to LiteRT's from end to end, so that each token of the answer is
    its first, or as good as that to rounding. With int8 activations nothing sharp can be said of the student's own
    logits, as one value that takes the other one of two codes moves them by 5 %: each of its layers is given what
    LiteRT's layer was given, and is held to one layer's rounding (`tflite.Proof`). Of SmolLM2-135M with int8
    activations 121 of the 136 tokens that LiteRT-LM answered are also the first of the student's own logits, the
    others up to 1.7 % of the largest behind it; of the small students of the tests all are.
    """
    room = int(proof.frozen.config["max_length"]) - _LONGEST_ANSWER
    start = [] if speech.start is None else [speech.start]
    prompts = {text: speech.tokenizer.encode(text, add_special_tokens=False).ids for text in texts}
    fitting = [(text, start + ids) for text, ids in prompts.items() if ids and len(start + ids) <= room]
    if not fitting:
        raise VerificationError(f"no text to try fits max_length = {room + _LONGEST_ANSWER}: give the student more.")
    for text, ids in fitting:
        tokens = proof.continued(ids, _LONGEST_ANSWER)
        tokens = list(takewhile(lambda token: token not in speech.stops, tokens))
        expected, found = engine.detokenize(tokens) if tokens else "", engine.continued(text, _LONGEST_ANSWER)
        if found != expected:
            raise VerificationError(f"LiteRT-LM continues {text!r} with {found!r}, LiteRT with {expected!r}.")
    for text, ids in [(text, ids) for text, ids in fitting if len(ids) > 1][:_SCORED]:
        _check_scores(proof, speech, engine, text, ids)


def _check_scores(proof: Proof, speech: Speech, engine: Engine, prompt: str, ids: Sequence[int]) -> None:
    """How likely LiteRT-LM finds each token of a text: as likely as the student does, or LiteRT (`_check_answers`)."""
    target = speech.tokenizer.encode(_TARGET, add_special_tokens=False).ids
    seen, found = [*ids[:-2], ids[-1]], engine.scored(prompt, _TARGET)
    expected = proof.read([*seen, *target[:-1]], len(seen) - 1)
    likely = expected.logits.log_softmax(-1)[range(len(target)), target]
    # A token's logit may be off by the limit, and so may the logarithm of the sum over all of them, which LiteRT-LM
    # adds up in float32: n numbers, in any order, to (n - 1) 2^-24 of their sum (Higham 2002, section 4.2).
    allowed = 2 * expected.limit + (expected.logits.shape[-1] - 1) * 2.0**-24
    if len(found) != len(target) or not float((torch.tensor(found) - likely).abs().max()) <= allowed:
        raise VerificationError(
            f"LiteRT-LM finds the logarithms of how likely the tokens of {_TARGET!r} are behind {prompt!r} to be "
            f"{found}, expected are {likely.tolist()}, each to {allowed:.2g}."
        )
