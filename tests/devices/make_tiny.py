"""Writes tiny_static.tflite, a static int8 classifier of 8 ids, and tiny_static.json, what it answers."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main() -> None:
    os.environ["LITERT_TORCH_SHOW_PROGRESS"] = "n"
    warnings.simplefilter("ignore")
    import litert_torch
    import numpy as np
    import torch
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(64, 32)
            self.hidden = torch.nn.Linear(32, 32)
            self.head = torch.nn.Linear(32, 10)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
            mask = attention_mask.float().unsqueeze(-1)
            pooled = (self.embedding(input_ids) * mask).sum(1) / mask.sum(1)
            return {"logits": self.head(torch.relu(self.hidden(pooled)))}

    torch.manual_seed(0)
    ones = torch.ones(1, 8, dtype=torch.int32)
    convert: Any = litert_torch
    sample = {"input_ids": ones, "attention_mask": ones}
    made = convert.signature("length_8", Tiny().eval(), sample_kwargs=sample).convert()
    made.export(str(HERE / "float.tflite"))
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 64, (16, 8)).tolist()
    masks = [[1] * n + [0] * (8 - n) for n in rng.integers(2, 9, 16).tolist()]
    rows = [
        {"input_ids": np.array([i], np.int32), "attention_mask": np.array([m], np.int32)}
        for i, m in zip(ids, masks, strict=True)
    ]
    work = quantizer.Quantizer(str(HERE / "float.tflite"), recipe.static_wi8_ai8())
    calibrated = work.calibrate({"length_8": rows})
    work.quantize(calibrated).export_model(str(HERE / "tiny_static.tflite"), overwrite=True)
    (HERE / "float.tflite").unlink()
    runner = Interpreter(str(HERE / "tiny_static.tflite")).get_signature_runner("length_8")
    answers = [runner(**row)["logits"][0].tolist() for row in rows]
    inputs = {"input_ids": ids, "attention_mask": masks}
    text = json.dumps({"inputs": inputs, "outputs": {"logits": answers}})
    (HERE / "tiny_static.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
