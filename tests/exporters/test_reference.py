"""The post-training reference of a model large enough that its library puts weights outside the flatbuffer."""

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import nn

from edgedistill.exporters.tflite import load, reference


class Wide(nn.Module):
    """300 000 weights in one layer, above the library's 256 KiB, behind the inputs of an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(600, 500)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        told = (input_ids * attention_mask).float().mean(dim=1, keepdim=True)
        return self.layer(told.expand(-1, 600))


def test_a_large_post_training_file_is_in_one_piece_and_runs(tmp_path):
    import litert_torch

    inputs = {name: torch.ones(1, 8, dtype=torch.int32) for name in ("input_ids", "attention_mask")}
    model = Wide().eval()
    float_file, int8_file = tmp_path / "float.tflite", tmp_path / "int8.tflite"
    litert_torch.signature("length_8", model, sample_kwargs=inputs).convert().export(str(float_file))
    reference.quantize_after_training(float_file, int8_file)
    assert 256 * 1024 < int8_file.stat().st_size < float_file.stat().st_size / 2
    load(int8_file)  # checks the structure of every file before it is read
    arrays = {name: value.numpy() for name, value in inputs.items()}
    answers = next(iter(Interpreter(str(int8_file)).get_signature_runner("length_8")(**arrays).values()))
    with torch.no_grad():
        expected = model(**inputs).numpy()
    assert float(np.abs(answers - expected).max()) < 0.05 * float(np.abs(expected).max())
