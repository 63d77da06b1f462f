"""What goes with a bundle's models for those who use them: code that runs each file in an app, and the notice."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import edgedistill
from edgedistill.errors import VerificationError
from edgedistill.pipeline.recheck import Bundle, inside

SNIPPETS = Path(__file__).parent / "snippets"
NOTICE = "NOTICE.md"
CODE = (".kt", ".swift", ".py")


def snippets(formats: Collection[str]) -> list[Path]:
    """The code that loads each format, and what it shares with other code of its language."""
    own = sorted(path for name in formats for path in (SNIPPETS / name).glob("*.*"))
    languages = {path.suffix for path in own}
    shared = sorted(path for path in (SNIPPETS / "shared").iterdir() if path.suffix in languages)
    return own + shared


def notice(licences: Sequence[Mapping[str, Any]]) -> str:
    """The text of NOTICE.md."""
    lines = ["# What this bundle was made from", ""]
    lines += [
        " — ".join((f"- {item.get('what')}", str(item.get("licence")), str(item.get("use")))) for item in licences
    ]
    return "\n".join(lines) + "\n"


def check(bundle: Bundle) -> tuple[str, ...]:
    """Hold code and notice to what this edgedistill writes beside such models; answers what could not be compared.

    The code has to name the files that it runs and the golden samples. That of a bundle that another version wrote, and
    its notice, are not compared byte for byte.

    Raises:
        VerificationError: naming the file that is missing, empty or another.
        SpecError: a listed file is none of the bundle's own.
    """
    manifest = bundle.manifest
    formats = [artifact.format for artifact in manifest.artifacts]
    if manifest.edgedistill_version != edgedistill.__version__:
        _check_names(bundle, formats)
        return (
            f"written by edgedistill {manifest.edgedistill_version}, and this is {edgedistill.__version__}: that its "
            "code for apps names these models and golden.json was checked, its other lines were not",
        )
    wanted = {path.name: path.read_bytes() for path in snippets(formats)}
    wanted[NOTICE] = notice(manifest.licences).encode()
    for name, content in wanted.items():
        if name not in manifest.files:
            raise VerificationError(f"{bundle.folder}: has no {name}, which goes with its models. Build again.")
        if inside(bundle.folder, name).read_bytes() != content:
            raise VerificationError(
                f"{bundle.folder / name}: is not the one that edgedistill {edgedistill.__version__} writes, as the "
                "manifest says. Build again, or copy your own code elsewhere."
            )
    _check_names(bundle, formats)  # the code is ours: is the model's file where it looks for it?
    return ()


def _check_names(bundle: Bundle, formats: Sequence[str]) -> None:
    """Some of the bundle's code names each model that has code, and golden.json."""
    listed = sorted(name for name in bundle.manifest.files if "/" not in name and Path(name).suffix in CODE)
    texts = {name: inside(bundle.folder, name).read_text(encoding="utf-8", errors="replace") for name in listed}
    for name, text in texts.items():
        if not text.strip():
            raise VerificationError(f"{bundle.folder / name}: is empty. Build again.")
    spoken = {artifact.path for artifact in bundle.manifest.artifacts if snippets([artifact.format])}
    for name in (*sorted(spoken), *(["golden.json"] if snippets(formats) else [])):
        if not any(name in text for text in texts.values()):
            raise VerificationError(
                f"{bundle.folder}: none of its code ({', '.join(listed) or 'there is none'}) names {name}. Build again."
            )
