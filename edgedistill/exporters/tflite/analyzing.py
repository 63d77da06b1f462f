"""What TensorFlow Lite's own analyzer says of a file and the GPU delegate, by a TensorFlow of the user's.

TensorFlow 2.17 is the last whose analyzer looks at anything: 2.18 and later find every file compatible, operators that
no delegate has included (seen with 2.18.1 and 2.21.0; tensorflow/tensorflow#77042). 2.17 needs numpy 1, this package
needs numpy 2, so they live apart: `EDGEDISTILL_TENSORFLOW` names the Python of an environment with TensorFlow 2.17.

    python3.11 -m venv tf && tf/bin/pip install tensorflow-cpu==2.17.1
    EDGEDISTILL_TENSORFLOW=tf/bin/python edgedistill verify BUNDLE

It answers for the delegate of its own version, from operators, types and shapes: newer delegates take more, and what it
finds compatible may still fail on a phone.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from edgedistill.errors import SpecError, StageError

VARIABLE = "EDGEDISTILL_TENSORFLOW"
NEWEST = (2, 17)
SECONDS = 120
_CODE = """
import sys, tensorflow as tf
sys.stdout.write(tf.__version__ + "\\n")
sys.stdout.flush()
tf.lite.experimental.Analyzer.analyze(model_path=sys.argv[1], gpu_compatibility=True)
"""
_WARNING, _FINE = "GPU COMPATIBILITY WARNING:", "looks compatible with GPU delegate"


def gpu_verdict(path: Path) -> tuple[str, ...] | None:
    """What keeps the file from the GPU delegate, a line each; empty where nothing does; None where nobody was asked.

    Raises:
        SpecError: the variable names no Python with such a TensorFlow.
        StageError: the analyzer fails, or says something else than it is known to.
    """
    python = os.environ.get(VARIABLE, "")
    if not python:
        return None
    quiet = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""}
    try:
        command = [python, "-c", _CODE, str(path.resolve())]
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False, env=quiet)
    except OSError as error:
        raise SpecError(
            f"{VARIABLE}={python}: cannot be run ({error.strerror}). Name a Python with TensorFlow 2.17."
        ) from None
    except subprocess.TimeoutExpired:
        raise StageError(f"TensorFlow's analyzer did not answer in {SECONDS} s about {path}.") from None
    told = done.stdout.decode("utf-8", "replace").splitlines()  # constants are shown as text, whatever their bytes
    version = told[0] if told else ""
    if done.returncode != 0:
        last = (done.stderr.decode("utf-8", "replace").strip() or "no message").splitlines()[-1]
        if not version:
            raise SpecError(f"{VARIABLE}={python}: has no TensorFlow ({last}). Install tensorflow-cpu==2.17.1 there.")
        raise StageError(f"TensorFlow's analyzer failed on {path}: {last}")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) > NEWEST:
        raise SpecError(
            f"{VARIABLE}={python}: the analyzer of TensorFlow {version} checks nothing and finds every file "
            "compatible. Install tensorflow-cpu==2.17.1 there."
        )
    found = [line.partition(_WARNING)[2].strip() for line in told if _WARNING in line]
    if not found and not any(_FINE in line for line in told):
        raise StageError(f"TensorFlow's analyzer says nothing about the GPU delegate of {path}.")
    return tuple(dict.fromkeys(line for line in found if "compatibility issues at nodes" not in line))
