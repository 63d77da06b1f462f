"""Chat templates as LiteRT-LM renders them: repaired, and compared with what Jinja makes of the original.

LiteRT-LM gives a message's content as a list of parts, `[{"type": "text", "text": ...}]`, where published templates
expect the text: some of them fail, and some print the list into the prompt. It leaves `bos_token` and `eos_token`
undefined, and puts the start token before the prompt by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgedistill.errors import StageError

Message = Mapping[str, Any]
CHATS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "Hello there!"},),
    ({"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "  What is 2 < 3?\nSay it. "}),
    (
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Another 'one', \"please\"."},
    ),
)
# Puts the text of every message where its list of parts is, then lets the original go on.
_TEXTS = (
    "{%- set edited = namespace(messages=[], text='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set edited.messages = edited.messages + [message] -%}"
    "{%- else -%}{%- set edited.text = '' -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{%- set edited.text = edited.text + part['text'] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set edited.messages = edited.messages + [dict(message, content=edited.text)] -%}"
    "{%- endif -%}{%- endfor -%}"
    "{%- set messages = edited.messages %}"
)
# marks what to train on, for transformers alone
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


def repaired(template: str, tokens: Mapping[str, str]) -> str:
    """The template that LiteRT-LM renders as Jinja renders the original. `tokens` are texts by role; "bos" is empty,
    as the runtime adds it.
    """
    known = {**tokens, "bos": ""}
    named = "".join(
        f"{{%- set {role}_token = {json.dumps(text, ensure_ascii=False)} -%}}" for role, text in sorted(known.items())
    )
    return named + _TEXTS + _GENERATION.sub("", template)


def rendered(template: str, chat: Sequence[Message], tokens: Mapping[str, str]) -> str | None:
    """What Jinja makes of a template as transformers runs it, up to the answer; None if the template refuses the chat.

    Raises:
        StageError: if it is no Jinja template.
    """
    from jinja2 import TemplateError, TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    named = {f"{role}_token": text for role, text in tokens.items()}
    try:
        made = environment.from_string(_GENERATION.sub("", template))
        return made.render(messages=list(chat), add_generation_prompt=True, **named)
    except TemplateSyntaxError as error:
        raise StageError(f"the student's chat_template is no Jinja template: line {error.lineno}: {error}.") from None
    except TemplateError:
        return None
