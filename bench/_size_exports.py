"""Students with random weights and the files that the exporters write of them, for `size.py`."""

import hashlib
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

import edgedistill
from edgedistill import catalog, quant
from edgedistill.specs import QuantScheme, Spec
from edgedistill.students import part

LIBRARIES = ("torch", "torchao", "litert-torch", "litert-converter", "onnx", "onnxscript", "coremltools", "gguf")


class Case(NamedTuple):
    """One file to export."""

    format: str
    family: str
    config: Spec
    scheme: QuantScheme
    buckets: tuple[int, ...]


def frozen_student(case: Case) -> quant.FrozenStudent:
    """A student with random weights, no two vectors alike; static ranges observed on random inputs."""
    torch.manual_seed(0)
    plugin = catalog.load_plugin("students", case.family)
    model = part(case.family, "module").build(case.config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
            else:
                nn.init.normal_(parameter, std=0.1 if parameter.dim() == 1 else 1.2 / parameter[0].numel() ** 0.5)
    quant.prepare(model, case.scheme, plugin.tensors(case.config)).train()
    random = np.random.default_rng(1)
    with torch.no_grad():
        for signature in plugin.signatures(case.config, case.buckets):
            feeds = plugin.sample(case.config, signature, random)
            model(*(torch.from_numpy(feeds[port.name]) for port in signature.inputs))
    quant.freeze_observers(model)
    return quant.freeze(model.eval(), case.family, case.config, case.scheme, {})


class Exports:
    """The exported files of students; kept in a folder, if one is given, for as long as no exporter changes."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def bytes_of(self, case: Case) -> bytes:
        """A file of a format that is one file."""
        kept = self._kept(case, "file")
        if kept is not None and kept.exists():
            return kept.read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "student"
            export(case, out)
            data = out.read_bytes()
        _keep(kept, data)
        return data

    def size_of(self, case: Case, padded: bool = True) -> int:
        """Bytes of the exported file, without the proofs that an export ends with: they change none.

        Not `padded`: a GGUF without what fills up its header.
        """
        kept = self._kept(case, "size" if padded else "unpadded")
        if kept is not None and kept.exists():
            return int(kept.read_text())
        if case.format == "tflite":
            size = len(self.bytes_of(case))
        else:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "student"
                export(case, out)
                filled = _filling(out) if case.format == "gguf" and not padded else 0
                size = sum(path.stat().st_size for path in (out, *out.rglob("*")) if path.is_file()) - filled
        _keep(kept, str(size).encode())
        return size

    def _kept(self, case: Case, what: str) -> Path | None:
        digest = hashlib.sha256(f"{case} {_writers(case.format)}".encode()).hexdigest()[:32]
        return None if self.folder is None else self.folder / f"{case.format}-{digest}.{what}"


def _keep(path: Path | None, data: bytes) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(data)
        partial.rename(path)


@cache
def _writers(format_name: str) -> str:
    """What exported bytes depend on beside the student: our code, this file, and the libraries."""
    root = Path(edgedistill.__file__).parent
    folders = [root / name for name in ("quant", "students", "specs", f"exporters/{format_name}")]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    files += [Path(__file__), *sorted((root / "exporters").glob("*.py"))]
    found = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return " ".join([found, *(version(name) for name in LIBRARIES)])


def export(case: Case, out: Path) -> None:
    WRITERS[case.format](frozen_student(case), case.buckets, out)


def exported_bytes(case: Case) -> int:
    """Bytes of the file, exported anew."""
    return Exports().size_of(case)


def _tflite(frozen: quant.FrozenStudent, buckets: tuple[int, ...], out: Path) -> None:
    from edgedistill.exporters.tflite.carriers import carriers
    from edgedistill.exporters.tflite.decoding import entry_points
    from edgedistill.exporters.tflite.graph import convert
    from edgedistill.exporters.tflite.shrink import shrink

    given = carriers(frozen)
    out.write_bytes(shrink(convert(frozen, entry_points(frozen, buckets), given), frozen, given))


def _onnx(frozen: quant.FrozenStudent, buckets: tuple[int, ...], out: Path) -> None:
    from edgedistill.exporters.onnx.graph import convert
    from edgedistill.exporters.onnx.packing import pack

    out.write_bytes(pack(convert(frozen, frozen.signatures(buckets)), frozen))


def _coreml(frozen: quant.FrozenStudent, buckets: tuple[int, ...], out: Path) -> None:
    from edgedistill.coreml import load as parse
    from edgedistill.exporters.coreml.convert import Converter
    from edgedistill.exporters.coreml.describe import describe
    from edgedistill.exporters.coreml.seal import seal

    with tempfile.TemporaryDirectory() as folder:
        converter = Converter(frozen, frozen.signatures(buckets))
        raw = converter.write(Path(folder))
        seal(raw.path, describe(parse(raw.path), frozen, converter.signature.name), converter.signature, out)


def _gguf(frozen: quant.FrozenStudent, buckets: tuple[int, ...], out: Path) -> None:
    from edgedistill.exporters.gguf.writing import write

    write(frozen, buckets, out)


def _filling(path: Path) -> int:
    import gguf

    reader = gguf.GGUFReader(path)
    last = reader.tensors[-1].field
    return int(reader.data_offset) - (last.offset + sum(int(part.nbytes) for part in last.parts))


WRITERS = {"tflite": _tflite, "onnx": _onnx, "coreml": _coreml, "gguf": _gguf}
