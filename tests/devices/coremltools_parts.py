"""Writes a package `coremltools` with the calls that the iPhone's program makes, and a phone that answers logits."""

from __future__ import annotations

from pathlib import Path

FILES = {
    "coremltools/__init__.py": """
import enum
__version__ = "9.0"
ComputeUnit = enum.Enum("ComputeUnit", ["ALL", "CPU_ONLY"])
from coremltools import models
""",
    "coremltools/models/__init__.py": """
class MLModel:
    def __init__(self, model, skip_model_load=False, compute_units=None):
        self.weights_dir = self.function_name = self.optimization_hints = None
        self.compute_unit = compute_units
    def get_spec(self):
        return "spec"
""",
    "coremltools/models/ml_program/__init__.py": "",
    "coremltools/models/ml_program/experimental/__init__.py": "",
    "coremltools/models/ml_program/experimental/remote_device.py": """
import enum, os
from dataclasses import dataclass
DeviceType = enum.Enum("DeviceType", ["IPHONE"])
@dataclass
class AppSigningCredentials:
    development_team: str = ""
    provisioning_profile_uuid: str | None = None
    bundle_identifier: str | None = None
@dataclass
class Device:
    name: str
    identifier: str
    udid: str
    os_version: str = "18.2"
    os_build_number: str = "22C152"
    developer_mode_state: str = os.environ.get("STANDIN_MODE", "enabled")
    @staticmethod
    def get_connected_devices(device_type):
        return [Device(name, f"id-{name}", f"udid-{name}") for name in os.environ.get("STANDIN_PHONES", "Mine").split()]
    async def prepare_for_model_debugging(self, credentials=None):
        assert credentials.development_team == "TEAM1"
        return self
""",
    "coremltools/models/ml_program/experimental/async_wrapper.py": """
import numpy as np
class MLModelAsyncWrapper:
    @staticmethod
    def from_spec_or_path(spec_or_path, weights_dir, compute_units, function_name, optimization_hints, device):
        return MLModelAsyncWrapper()
    async def load(self): pass
    async def unload(self): pass
    async def predict(self, inputs):
        return {"logits": inputs["input_ids"].astype(np.float32)[:, :2] * 0.5}
""",
    "coremltools/models/ml_program/experimental/perf_utils.py": """
import os
from types import SimpleNamespace
class MLNeuralEngineComputeDevice: pass
class MLCPUComputeDevice: pass
class MLModelBenchmarker:
    def __init__(self, model, device=None):
        self.turn = 0
    async def benchmark_load(self, iterations=1):
        if os.environ.get("STANDIN_FAILS"):
            raise RuntimeError(os.environ["STANDIN_FAILS"])
        return SimpleNamespace(samples=[120.5])
    async def benchmark_predict(self, inputs=None, iterations=1, warmup=False):
        self.turn += 1
        return SimpleNamespace(samples=[1.0 + 0.25 * (self.turn % 3)])
    async def benchmark_operation_execution(self, inputs=None, iterations=1, warmup=False):
        made = lambda device, ms: SimpleNamespace(
            compute_device_usage=SimpleNamespace(preferred_compute_device=device),
            measurement=SimpleNamespace(statistics=SimpleNamespace(median=ms)))
        return [made(MLNeuralEngineComputeDevice(), 0.9), made(MLNeuralEngineComputeDevice(), 0.0),
                made(MLCPUComputeDevice(), 0.1)]
""",
}


def write(folder: Path) -> Path:
    """Put the package into `folder`."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
