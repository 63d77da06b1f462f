"""How a device is driven, for the commands that run files on one: described once."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgedistill.runners import How

PANEL = "The device"
CoreMask = Annotated[
    str | None,
    typer.Option("--core-mask", metavar="HEX", help="Cores to run on, as for taskset.", rich_help_panel=PANEL),
]
Python = Annotated[
    str | None,
    typer.Option(
        "--python", metavar="PATH", help="Interpreter there, with the runtime; python3 if not given.",
        rich_help_panel=PANEL,
    ),
]  # fmt: skip
Tool = Annotated[
    str | None,
    typer.Option(
        "--tool", metavar="FILE|device:PATH", help="A benchmark program, where there is no Python.",
        rich_help_panel=PANEL,
    ),
]  # fmt: skip
CoolDown = Annotated[
    float | None,
    typer.Option(
        "--cool-down", min=0, max=3600, metavar="SECONDS", help="Wait so long for a hot device; 120 if not given.",
        rich_help_panel=PANEL,
    ),
]  # fmt: skip
Unfit = Annotated[
    str | None,
    typer.Option(
        "--unfit",
        metavar="record|mark|refuse",
        help="A device too hot, too busy or low on battery: note it, mark the figures for the gate, or end with 5. "
        "If not given: the target's; else record on host, mark elsewhere.",
        rich_help_panel=PANEL,
    ),
]
Reconnect = Annotated[
    float | None,
    typer.Option(
        "--reconnect", min=0, max=3600, metavar="SECONDS", help="Wait so long for a lost device; 30 if not given.",
        rich_help_panel=PANEL,
    ),
]  # fmt: skip


def driven(
    *,
    core_mask: str | None,
    python: str | None,
    tool: str | None,
    cool_down: float | None,
    unfit: str | None,
    reconnect: float | None,
) -> How:
    """The options that were given, and the runners' own values for the others.

    Raises:
        SpecError: a mask or a policy that is none.
    """
    from edgedistill.runners import How

    given: dict[str, object] = {
        "core_mask": core_mask, "python": python, "tool": tool, "cool_down_s": cool_down, "unfit": unfit,
        "reconnect_s": reconnect,
    }  # fmt: skip
    return How(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def given(how: How) -> dict[str, object]:
    """The options that differ from the runners' own values, by their names on the command line."""
    from edgedistill.runners import How

    usual = asdict(How())
    changed = {name: value for name, value in asdict(how).items() if value != usual[name]}
    return {f"--{name.removesuffix('_s').replace('_', '-')}": True for name in changed}
