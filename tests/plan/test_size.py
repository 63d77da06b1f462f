"""The predicted size against files that the exporter really writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill import catalog
from edgedistill.errors import SpecError
from edgedistill.plan import tflite_size
from edgedistill.plan.size import largest
from edgedistill.specs import QuantScheme
from edgedistill.students import bert

CONFIG = bert.Config(layers=2, width=64, heads=2, ffn=256, vocabulary=1200, max_length=24, classes=7)
DYNAMIC, STATIC = QuantScheme(), QuantScheme(activations="static_int8")


def exported_mb(config: bert.Config, scheme: QuantScheme, buckets: list[int], path: Path) -> float:
    """Size of a real file with random weights: sizes do not depend on what was learned."""
    import torch

    from edgedistill.quant.fake import prepare
    from edgedistill.quant.frozen import freeze
    from edgedistill.students.bert.module import build

    torch.manual_seed(0)
    network = build(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # no two vectors alike, as after training
    model = prepare(network, scheme, bert.tensors(config)).train()
    ids = torch.randint(0, config.vocabulary, (4, buckets[-1]))
    model(ids, torch.ones_like(ids))
    catalog.load_plugin("exporters", "tflite").export(freeze(model.eval(), "bert", config, scheme, {}), buckets, path)
    return path.stat().st_size / 1e6


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("scheme", "buckets"), [(DYNAMIC, [24]), (DYNAMIC, [8, 24]), (STATIC, [8, 24])], ids=["one", "two", "static"]
)
def test_the_prediction_is_within_two_percent_of_the_file(
    scheme: QuantScheme, buckets: list[int], tmp_path: Path
) -> None:
    real = exported_mb(CONFIG, scheme, buckets, tmp_path / "student.tflite")
    assert tflite_size(bert.tensors(CONFIG), scheme, buckets).total_mb == pytest.approx(real, rel=0.02)


def test_the_parts_add_up() -> None:
    size = tflite_size(bert.tensors(CONFIG), DYNAMIC, [8, 24])
    assert sum(size.parts_mb.values()) == pytest.approx(size.total_mb)
    assert size.parts_mb["codes"] + size.parts_mb["floats"] > 0.7 * size.total_mb


def test_a_further_signature_costs_far_less_than_the_weights() -> None:
    tensors = bert.tensors(CONFIG)
    sizes = [tflite_size(tensors, DYNAMIC, buckets).total_mb for buckets in ([24], [8, 24], [8, 16, 24])]
    assert sizes == sorted(sizes)
    assert sizes[2] < 1.1 * sizes[0]


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(SpecError, match=r"unknown name 'tflit'.*did you mean 'tflite'"):
        largest(["tflit"], bert.tensors(CONFIG), DYNAMIC, [24])
