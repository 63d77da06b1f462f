"""The base of every value: frozen, strict, and decoded from TOML with errors a person can act on."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from edgedistill.errors import SpecError, did_you_mean


class Spec(BaseModel):
    """A frozen value; unknown keys are errors, a change is a new value (`model_copy(update=...)`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def decode(cls, values: Mapping[str, Any], where: str, source: str = "") -> Self:
        """Build the value from untrusted `values`; `where` names the file or option in the error.

        Raises:
            SpecError: with the key, the line (when `source` holds the TOML text), what was seen and what is allowed.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SpecError("\n".join(_explain(cls, error, where, source))) from None

    @classmethod
    def read_toml(cls, path: Path) -> Self:
        """Decode a TOML file.

        Raises:
            SpecError: if the file cannot be read, is not UTF-8 TOML, or does not describe a valid value.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise SpecError(f"{path}: not UTF-8 text (byte {error.start}). Save the file as UTF-8.") from None
        except OSError as error:
            raise SpecError(f"{path}: cannot be read ({error.strerror}).") from None
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise SpecError(f"{path}: not valid TOML: {error}.") from None
        return cls.decode(values, where=str(path), source=text)


def _explain(cls: type[Spec], error: ValidationError, where: str, source: str) -> list[str]:
    lines = []
    for item in error.errors(include_url=False):
        loc = item["loc"]
        key = ".".join(str(part) for part in loc)
        place = f"{where}{_line_of(source, loc)}"
        if item["type"] == "extra_forbidden":
            lines.append(f"{place}: unknown key {key!r}{did_you_mean(str(loc[-1]), _allowed(cls, loc[:-1]))}")
        elif item["type"] == "missing":
            lines.append(f"{place}: key {key!r} is missing.")
        else:
            message = item["msg"].removeprefix("Value error, ")
            # of what is wrong with several keys together the message names them; the whole value says no more
            seen = "" if not key and isinstance(item["input"], Mapping) else f" {key or 'value'} = {item['input']!r}:"
            lines.append(f"{place}:{seen} {message}.")
    return lines


def _allowed(cls: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys allowed at `loc`, found by walking the JSON Schema."""
    schema = cls.model_json_schema()
    node: dict[str, Any] = schema
    for part in loc:
        node = _resolve(schema, node)
        node = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
    return sorted(_resolve(schema, node).get("properties", {}))


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    for option in (node, *node.get("anyOf", ()), *node.get("allOf", ())):
        if "$ref" in option:
            found: dict[str, Any] = schema["$defs"][option["$ref"].rsplit("/", 1)[-1]]
            return found
    return next((option for option in node.get("anyOf", ()) if "items" in option or "properties" in option), node)


def _line_of(source: str, loc: tuple[int | str, ...]) -> str:
    """`:LINE` of the key in the TOML text, as well as a search can tell; empty when it cannot.

    tomllib keeps no positions. The n-th `[[table]]` header is followed into its block, then the key is searched for.
    """
    lines = source.splitlines()
    start = 0
    path: list[str] = []
    for part in loc:
        if isinstance(part, int):
            header = re.compile(rf"\s*\[\[\s*{re.escape('.'.join(path))}\s*\]\]")
            hits = [n for n, line in enumerate(lines) if header.match(line)]
            start = hits[part] if part < len(hits) else start
        else:
            path.append(part)
            header = re.compile(rf"\s*\[\s*{re.escape('.'.join(path))}\s*\]")
            start = next((n for n, line in enumerate(lines) if n >= start and header.match(line)), start)
    key = re.compile(rf"\s*['\"]?{re.escape(str(loc[-1]))}['\"]?\s*=") if loc else None
    for number, line in enumerate(lines[start:], start + 1):
        if key and key.match(line):
            return f":{number}"
    return ""
