"""`edgedistill doctor`: this machine, what is installed, what is missing and how to get it."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill.cli import options, output

if TYPE_CHECKING:
    from edgedistill.specs import TeacherSource

DISK_MIN_MB, MEMORY_MIN_MB = 500.0, 1500.0


def doctor(store: options.StoreFolder = None, as_json: options.AsJson = False) -> None:
    """Check this machine: exit 2 when something that a build needs is missing."""
    output.choose(as_json=as_json)
    from edgedistill.cli.select import store_root
    from edgedistill.errors import MissingDependency

    root = store_root(store)
    facts: dict[str, Any] = {
        "machine": machine(root),
        "dependencies": dependencies(),
        "teachers": teachers(),
        "store": {"path": str(root), "exists": root.is_dir(), "size_mb": round(folder_mb(root), 1)},
    }
    missing = [item["requirement"] for item in facts["dependencies"] if not item["ok"]]
    facts["missing"] = missing
    facts["command"] = "pip install " + " ".join(f'"{name}"' for name in missing) if missing else None
    if as_json:
        output.json_document(facts)
    _show(facts)
    if missing:
        raise MissingDependency(
            f"{len(missing)} required packages are missing or of a wrong version:\n  {facts['command']}"
        )


def machine(root: Path) -> dict[str, Any]:
    """Python, cores, memory and the disk under the store."""
    place = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": cores,
        "memory_mb": _memory_mb(),
        "disk_free_mb": round(shutil.disk_usage(place).free / 1e6),
    }


def _memory_mb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6)
    except (ValueError, OSError, AttributeError):
        return None


def dependencies() -> list[dict[str, Any]]:
    """Each required distribution with its version, and whether it satisfies the requirement."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires("edgedistill") or ()]
    except metadata.PackageNotFoundError:
        wanted = [Requirement("edgedistill")]  # run from a checkout that was never installed
    found = []
    for item in wanted:
        if item.marker and not item.marker.evaluate({"extra": ""}):
            continue
        try:
            version: str | None = metadata.version(item.name)
        except metadata.PackageNotFoundError:
            version = None
        ok = version is not None and item.specifier.contains(version, prereleases=True)
        found.append({"requirement": f"{item.name}{item.specifier}", "version": version, "ok": ok})
    return found


def teachers() -> list[dict[str, Any]]:
    """Every teacher of the shipped profiles, and whether it is on this machine; nothing is fetched."""
    from edgedistill import catalog

    sources = {str(s): s for name in catalog.profile_names() for s in catalog.load_profile(name).teacher.sources}
    return [
        {"source": text, "present": _present(source), "licence": source.licence} for text, source in sources.items()
    ]


def _present(source: TeacherSource) -> bool:
    if source.kind == "package":
        try:
            return bool(metadata.version(source.name))
        except metadata.PackageNotFoundError:
            return False
    if source.kind == "folder":
        return Path(source.name).expanduser().is_dir()
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    return any((cache / f"models--{source.name.replace('/', '--')}" / "snapshots").glob("*"))


def folder_mb(root: Path) -> float:
    """Size of all files under a folder in MB; 0 when there is none."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            total += 0 if path.is_symlink() or not path.exists() else path.stat().st_size
    return total / 1e6


def _show(facts: dict[str, Any]) -> None:
    host, store = facts["machine"], facts["store"]
    output.say(f"Python {host['python']}, {host['system']}")
    memory = "unknown" if host["memory_mb"] is None else f"{host['memory_mb']:,} MB"
    low = (host["memory_mb"] or MEMORY_MIN_MB) < MEMORY_MIN_MB or host["disk_free_mb"] < DISK_MIN_MB
    output.say(
        f"{host['cores']} cores, {memory} memory, {host['disk_free_mb']:,} MB free on disk", "yellow" if low else ""
    )
    rows = [(item["requirement"], item["version"] or "–", "ok" if item["ok"] else "MISSING OR WRONG")
            for item in facts["dependencies"]]  # fmt: skip
    output.table("packages", ("required", "installed", ""), rows)
    rows = [
        (item["source"], "present" if item["present"] else "not here", item["licence"]) for item in facts["teachers"]
    ]
    output.table("teachers", ("source", "", "licence"), rows)
    output.say(f"store: {store['path']} ({store['size_mb']:,} MB{'' if store['exists'] else ', not made yet'})")
    output.say("everything a build needs is here" if not facts["missing"] else f"run: {facts['command']}",
               "green" if not facts["missing"] else "bold red")  # fmt: skip
