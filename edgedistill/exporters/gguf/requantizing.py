"""llama.cpp's own quantizations of an exported file, K-quants among them: smaller or better, but not what was trained.

The file is marked: `edgedistill.exact` is false, `edgedistill.requantized` and `general.name` say the kind, and
`read_back` refuses it. Its bytes differ between x86 and ARM, as llama.cpp's quantizers do.
"""

from __future__ import annotations

from pathlib import Path

from edgedistill.errors import StageError, VerificationError
from edgedistill.exporters.gguf.parsing import parse
from edgedistill.exporters.gguf.running import _library, _listening, _reason

# enum llama_ftype
KINDS = {"Q2_K": 10, "Q3_K_M": 12, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18}


def requantize(path: Path, kind: str, out: Path, threads: int = 1) -> None:
    """Write `out`: the weights of `path`, quantized again by llama.cpp from their dequantized values.

    Rows that are no multiple of 256 get a type that llama.cpp chooses in place of a K-quant.

    Raises:
        MissingDependency: if llama-cpp-python is not installed.
        StageError: for an unknown kind, or if llama.cpp fails. `out` appears only when all is well.
    """
    if kind not in KINDS:
        raise StageError(f"llama.cpp quantization {kind!r} is not known here: {', '.join(KINDS)} are.")
    name = parse(path).metadata.get("general.name", "")
    library = _library()
    marks: dict[str, bool | str] = {"edgedistill.exact": False, "edgedistill.requantized": kind}
    marks["general.name"] = f"{str(name)[:80]} ({kind} by llama.cpp, not as trained)"
    overrides = (library.llama_model_kv_override * (len(marks) + 1))()  # the last one stays empty: the end
    for override, (key, value) in zip(overrides, marks.items(), strict=False):
        override.key = key.encode()
        if isinstance(value, bool):
            override.tag, override.value.val_bool = library.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
        else:
            override.tag, override.value.val_str = library.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()[:127]
    parameters = library.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread, parameters.allow_requantize = KINDS[kind], threads, True
    parameters.kv_overrides = overrides
    partial = out.with_name(out.name + ".partial")
    try:
        with _listening(library) as heard:
            failed = library.llama_model_quantize(str(path).encode(), str(partial).encode(), parameters)
        if failed:
            raise StageError(f"llama.cpp cannot quantize {path} as {kind}: {_reason(heard)}.")
        found = parse(partial).metadata
        if {key: found.get(key) for key in marks} != marks:
            raise VerificationError(f"{out}: llama.cpp did not write the marks of a file that is not exact.")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
