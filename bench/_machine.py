"""What a benchmark ran on, and how its figures are stored."""

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "transformers", "litert-torch", "ai-edge-litert", "ai-edge-quantizer")


def machine() -> dict[str, object]:
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(memory, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "commit": commit.stdout.strip(),
        "load_average_before": os.getloadavg()[0],
    }


def write(name: str, figures: dict[str, object], table: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    document = json.dumps({"machine": machine(), **figures}, indent=1)
    (RESULTS / f"{name}.json").write_text(document + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(table, encoding="utf-8")
    print(table)
