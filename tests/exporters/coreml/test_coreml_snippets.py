"""The code for a Mac and an iPhone that ships beside a package."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from coreml_students import SNIPPETS, student

from edgedistill.exporters import coreml
from edgedistill.specs.quant import QuantScheme
from edgedistill.students import bert


@pytest.mark.parametrize("buckets", [(8,), (5, 8)])
def test_the_macs_script_replays_golden_samples(
    buckets: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the evaluator in place of Apple's runtime, which is all that this machine has."""
    frozen = student("bert", bert.TINY, QuantScheme(activations="float"))
    coreml.export(frozen, buckets, tmp_path / "model.mlpackage")
    runner = coreml.load(tmp_path / "model.mlpackage")
    (signature,) = runner.signatures.values()

    class Model:
        def __init__(self, path: str) -> None:
            assert path == str(tmp_path / "model.mlpackage")

        def predict(self, feeds: dict[str, Any]) -> dict[str, Any]:
            return runner.run(signature.name, feeds)

    fake: Any = ModuleType("coremltools")
    fake.models = ModuleType("coremltools.models")
    fake.models.MLModel = Model
    monkeypatch.setitem(sys.modules, "coremltools", fake)
    spec = importlib.util.spec_from_file_location("replay_golden", SNIPPETS / "replay_golden.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    ids = [2, 7, 9, 3]
    padded = ids + [0] * (0 if signature.name == "any" else 8 - len(ids))
    mask = [[1] * len(ids) + [0] * (len(padded) - len(ids))]
    feeds = {"input_ids": np.array([padded], np.int32), "attention_mask": np.array(mask, np.int32)}
    logits = runner.run(signature.name, feeds)["logits"][0].tolist()
    golden = [{"id": "a", "input_ids": ids, "answers": {"coreml": {"signature": signature.name, "logits": logits}}}]
    (tmp_path / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    assert script.main(tmp_path) == 0
    assert "samples that do not agree: 0" in capsys.readouterr().out
    logits[0] += 0.5
    (tmp_path / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    assert script.main(tmp_path) == 1
    assert "a: a logit differs by 0.5" in capsys.readouterr().out


def test_what_was_not_run_on_apple_hardware_says_so() -> None:
    for name in ("TextClassifier.swift", "replay_golden.py"):
        assert "NOT RUN ON APPLE HARDWARE" in (SNIPPETS / name).read_text(encoding="utf-8")[:500]
