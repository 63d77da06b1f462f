"""A default build killed at random moments and continued, against one that ran through: the same bytes?

python bench/resume.py [--kills 6]
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _machine import write
from default_build import build

FILES = ("model.tflite", "manifest.json", "frozen/student.safetensors", "golden.json", "vocab.txt")


def main(kills: int, folder: Path) -> None:
    seconds, _ = build(folder / "store", folder / "out", 0)
    store, out = folder / "killed_store", folder / "killed_out"
    command = [sys.executable, "-m", "edgedistill", "build", "--target", "pixel8", "--seed", "0", "--quiet"]
    command += ["--store", str(store), "--out", str(out)]
    moments, lived = random.Random(0), []
    for _ in range(kills):
        lived.append(moments.uniform(0.05, 0.35) * seconds)
        process = subprocess.Popen(command)
        time.sleep(lived[-1])
        process.send_signal(signal.SIGKILL)
        process.wait()
    last, _ = build(store, out, 0)
    same = {name: (out / name).read_bytes() == (folder / "out" / name).read_bytes() for name in FILES}
    total = sum(lived) + last
    lines = [
        "# Killed and continued",
        "",
        f"Killed with SIGKILL {kills} times, after {', '.join(f'{t:.0f} s' for t in lived)}.",
    ]
    lines += [
        "",
        f"Uninterrupted {seconds:.0f} s; with all kills {total:.0f} s: a kill cost {(total - seconds) / kills:.0f} s.",
    ]
    lines += [
        "",
        "| file | same bytes |",
        "|---|---|",
        *(f"| {n} | {'yes' if ok else '**no**'} |" for n, ok in same.items()),
    ]
    write("resume", {"seconds": seconds, "lived": lived, "last": last, "same": same}, "\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=6)
    with tempfile.TemporaryDirectory() as folder:
        main(parser.parse_args().kills, Path(folder))
