"""The call that the README shows, in a process of its own: nothing else has imported the package before."""

import subprocess
import sys

CODE = """
import sys, edgedistill
from edgedistill.predict import Workload
work = Workload(model="mobilenet_v2", runtime="litert", unit="cpu", precision="fp32")
seen = edgedistill.predict("pixel9_pro", work)
print(seen.level, seen.low < seen.median < seen.high or seen.low == seen.median, {"numpy", "torch"} & set(sys.modules))
"""


def test_the_call_works_from_the_top_of_the_package_without_numpy() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "exact row True set()"
