"""What every folder of the students promises; a new family is tested by being there.

Tests of text encoders (padding, order of tokens) run over families that take `input_ids` and `attention_mask`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from edgedistill import catalog, students
from edgedistill.specs import Spec
from edgedistill.tasks import text_classification as task

FAMILIES = catalog.plugins("students")
BUCKETS = (4, 8)


def plugin_of(family: str) -> Any:
    return catalog.load_plugin("students", family)


def entries(family: str, config: Spec | None = None) -> Any:
    return plugin_of(family).signatures(config or plugin_of(family).TINY, BUCKETS)


ENCODERS = [f for f in FAMILIES if [p.name for p in entries(f)[0].inputs] == ["input_ids", "attention_mask"]]
OWNERS = {"linear": torch.nn.Linear, "head": torch.nn.Linear, "convolution": torch.nn.Conv2d}
OWNERS |= {"embedding": torch.nn.Embedding}


def built(family: str, config: Spec | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    model: torch.nn.Module = students.part(family, "module").build(config or plugin_of(family).TINY)
    return model.eval()


def texts_of(config: Any, lengths: tuple[int, ...] = (3, 1, 7)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, config.vocabulary, (length,), generator=generator).tolist() for length in lengths]


def inputs_of(family: str, signature: Any, config: Spec | None = None) -> list[torch.Tensor]:
    feeds = plugin_of(family).sample(config or plugin_of(family).TINY, signature, np.random.default_rng(0))
    return [torch.from_numpy(feeds[port.name]) for port in signature.inputs]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tiny_config_answers_every_signature_with_the_shapes_and_types_it_says(family: str) -> None:
    model = built(family)
    for signature in entries(family):
        inputs = inputs_of(family, signature)
        for port, tensor in zip(signature.inputs, inputs, strict=True):
            assert (tuple(tensor.shape), str(tensor.dtype)) == (port.shape, f"torch.{port.dtype}")
        with torch.no_grad():
            out = model(*inputs)
        assert tuple(out.logits.shape) == signature.outputs[0].shape
        assert signature.outputs[0].name == "logits"
        assert bool(out.logits.isfinite().all())
        assert out.pooled.shape[:-1] == out.logits.shape[:-1]
        assert bool((out.logits != out.logits.flatten()[0]).any())


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_differ_and_repeat_with_the_generator(family: str) -> None:
    plugin, signature = plugin_of(family), entries(family)[-1]
    one, two, three = (plugin.sample(plugin.TINY, signature, np.random.default_rng(seed)) for seed in (0, 0, 1))
    first = signature.inputs[0].name
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not np.array_equal(one[first], three[first])


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_counted_before_the_student_is_built(family: str) -> None:
    plugin = plugin_of(family)
    changes = {"layers": 3}, {"width": 48}, {"vocabulary": 333}, {"ffn": 20}, {"classes": 9}, {"max_length": 9}
    for change in ({}, *changes):
        if change.keys() <= plugin.Config.model_fields.keys():
            config = plugin.TINY.model_copy(update=change)
            assert plugin.parameters(config) == sum(p.numel() for p in built(family, config).parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_stored_tensors_are_those_of_the_state_dict_and_of_the_layers_that_own_them(family: str) -> None:
    plugin = plugin_of(family)
    config = plugin.TINY
    model = built(family, config)
    stored = {tensor.name: tensor for tensor in plugin.tensors(config)}
    assert len(stored) == len(plugin.tensors(config))
    # a weight that two layers share is stored once, under its first name
    unique = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert unique == {name: tensor.shape for name, tensor in stored.items()}
    assert list(model.named_buffers()) == [], "what is not stored must not be needed"
    for name, tensor in stored.items():
        owner = model.get_submodule(name.rpartition(".")[0])
        matrix = name.endswith(".weight") and isinstance(owner, tuple(OWNERS.values()))
        assert matrix == (tensor.kind != "float"), name
        assert not matrix or isinstance(owner, OWNERS[tensor.kind]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_multiplications_are_those_that_a_counter_sees(family: str) -> None:
    plugin = plugin_of(family)
    for signature in entries(family):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            built(family)(*inputs_of(family, signature))
        assert counter.get_total_flops() == 2 * plugin.macs(plugin.TINY, signature.inputs[0].shape[1])


@pytest.mark.parametrize("family", ENCODERS)
def test_padding_does_not_change_the_answer(family: str) -> None:
    config = plugin_of(family).TINY
    model = built(family)
    (item,) = texts_of(config, (6,))
    with torch.no_grad():
        alone = model(*task.collate([item], 0))
        for extra, filler in ((1, 0), (5, 0), (10, 77), (10, 3)):
            ids = torch.tensor([item + [filler] * extra])
            mask = torch.tensor([[1] * 6 + [0] * extra])
            padded = model(ids, mask)
            torch.testing.assert_close(padded.logits, alone.logits, rtol=0, atol=1e-6)
            torch.testing.assert_close(padded.pooled, alone.pooled, rtol=0, atol=1e-6)
        seen = model(ids, torch.ones_like(mask))
    assert not torch.allclose(seen.logits, alone.logits, atol=1e-4), "without a mask the padding must be seen"


@pytest.mark.parametrize("family", ENCODERS)
def test_a_text_does_not_see_its_neighbours_in_the_batch(family: str) -> None:
    config = plugin_of(family).TINY
    model, items = built(family), texts_of(config)
    with torch.no_grad():
        together = model(*task.collate(items, 0)).logits
        for row, item in enumerate(items):
            torch.testing.assert_close(model(*task.collate([item], 0)).logits[0], together[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ENCODERS)
def test_the_order_of_tokens_matters(family: str) -> None:
    config = plugin_of(family).TINY
    model = built(family)
    ids = torch.tensor([[5, 6, 7, 8], [8, 7, 6, 5]])
    with torch.no_grad():
        logits = model(ids, torch.ones_like(ids)).logits
    assert not torch.allclose(logits[0], logits[1], atol=1e-5)
    assert config.max_length >= 4


@pytest.mark.parametrize("family", FAMILIES)
def test_one_step_of_training_reaches_every_parameter_and_lowers_the_loss(family: str) -> None:
    model, signature = built(family).train(), entries(family)[-1]
    batch = inputs_of(family, signature)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(2):
        logits = model(*batch).logits.flatten(0, -2)
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[-1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
    silent = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    assert silent == []


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_seeds_build_equal_weights(family: str) -> None:
    one, two = built(family).state_dict(), built(family).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_described_without_torch(family: str) -> None:
    import subprocess
    import sys

    code = (
        f"import sys; from edgedistill.students import {family} as f; f.parameters(f.TINY); f.macs(f.TINY, 8); "
        "f.tensors(f.TINY); f.signatures(f.TINY, (4, 8)); print('torch' in sys.modules, set(f.FORMATS))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False {")
    assert set(plugin_of(family).FORMATS) <= set(catalog.plugins("exporters"))


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    from edgedistill.students.bert import TINY, Config

    with pytest.raises(ValueError, match="not a multiple of heads = 3"):
        Config(**(TINY.model_dump() | {"heads": 3}))
