"""Writes tiny_decoder.gguf and tiny_decoder.litertlm, one decoder of 96 tokens in two formats, and tiny_decoder.json:
where the .tflite is in the bundle, a prompt, the logits behind it, and how the student continues it.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
PROMPT, ANSWER = 19, 12


def main() -> None:
    os.environ["LITERT_TORCH_SHOW_PROGRESS"] = "n"
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(HERE.parent / "exporters" / "litertlm"))
    import torch
    from litertlm_students import SIZES, decoder

    from edgedistill.exporters import gguf, litertlm
    from edgedistill.exporters.litertlm.parsing import parse
    from edgedistill.specs import QuantScheme

    SIZES["max_length"] = 96
    frozen = decoder("llama", QuantScheme())
    gguf.export(frozen, (8,), HERE / "tiny_decoder.gguf")
    litertlm.export(frozen, (8,), HERE / "tiny_decoder.litertlm")
    prompt = [n * 7919 % SIZES["vocabulary"] for n in range(PROMPT)]
    module, text, logits = frozen.to_module(), list(prompt), []
    for _ in range(ANSWER):
        with torch.no_grad():
            logits.append(module(torch.tensor([text], dtype=torch.int32)).logits[0, -1])
        text.append(int(logits[-1].argmax()))
    told = {
        "model": parse(HERE / "tiny_decoder.litertlm").model,
        "prompt": prompt,
        "logits": logits[0].tolist(),
        "answer": text[PROMPT:],
    }
    (HERE / "tiny_decoder.json").write_text(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
