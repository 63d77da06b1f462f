"""The decoder family against transformers' own networks, with and without a cache, and its published weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgedistill.errors import SpecError, TeacherError
from edgedistill.quant import FrozenStudent, freeze, prepare
from edgedistill.specs import PerGroup, QuantScheme, WeightGrid
from edgedistill.students import llama
from edgedistill.students.llama.load import from_folder, from_huggingface
from edgedistill.students.llama.module import Decoder, build

SIZES: dict[str, Any] = {"layers": 3, "width": 64, "heads": 4, "kv_heads": 2, "ffn": 96, "vocabulary": 160}
SIZES |= {"max_length": 64, "norm_eps": 1e-6}
CONFIGS = {
    "llama": llama.Config(head_width=32, tied=False, **SIZES),
    "llama_tied": llama.Config(head_width=16, **SIZES),
    "qwen2": llama.Config(architecture="qwen2", head_width=16, rope_theta=1e6, **SIZES),
    "qwen3": llama.Config(architecture="qwen3", head_width=32, rope_theta=1e6, **SIZES),
    "gemma3": llama.Config(architecture="gemma3", head_width=32, window=5, global_every=2, **SIZES),
}
COMMON = {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
COMMON |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"head_dim": 32, "tie_word_embeddings": False}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": False}),
    "gemma3": ("Gemma3", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 5, "layer_types": LAYERS}),
}


def published(name: str, **changes: Any) -> nn.Module:
    """A small random model of transformers; gains of norms too are drawn, about 1 or, as Gemma adds it, about 0."""
    import transformers

    kind, settings = PUBLISHED[name]
    config = getattr(transformers, f"{kind}TextConfig" if kind == "Gemma3" else f"{kind}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config(**COMMON, **(settings | changes))).eval()
    for key, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in key and kind != "Gemma3"), std=0.12)
    return model  # type: ignore[no-any-return]


def decoder(name: str, **changes: Any) -> Decoder:
    """Random weights as large as trained ones."""
    torch.manual_seed(1)
    model = build(CONFIGS[name].model_copy(update=changes))
    for key, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in key), std=0.12)
    return model.eval()


def ids_of(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 160, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PUBLISHED)
def test_logits_are_those_of_transformers(name: str) -> None:
    theirs = published(name)
    loaded = from_huggingface(theirs.state_dict(), theirs.config.to_dict())  # type: ignore[operator,union-attr]
    ids = ids_of((2, 40))
    with torch.no_grad():
        expected, found = theirs(ids).logits, loaded.build()(ids.int()).logits
    assert float(expected.abs().max()) > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_prompt_and_steps_give_the_logits_of_the_whole_text(name: str) -> None:
    """Prompts of several lengths, then token by token, past the window of local layers; the cache has spare slots."""
    model, ids = decoder(name), ids_of((2, 20))
    with torch.no_grad():
        whole = model(ids)
        for prompt in (1, 4, 13):
            caches, seen = model.empty_caches(batch=2, slots=24), []
            for start, end in [(0, prompt), *((n, n + 1) for n in range(prompt, 20))]:
                position = torch.tensor([start], dtype=torch.int32)
                out, caches = model.step(ids[:, start:end].int(), position, caches)
                seen.append(out)
            torch.testing.assert_close(torch.cat([o.logits for o in seen], 1), whole.logits, rtol=0, atol=1e-5)
            torch.testing.assert_close(torch.cat([o.pooled for o in seen], 1), whole.pooled, rtol=0, atol=1e-5)


def test_what_a_slot_held_before_is_not_read_and_the_caches_given_stay() -> None:
    model, ids = decoder("gemma3"), ids_of((1, 6))
    clean = model.empty_caches()
    assert clean[0][0].shape == (1, 2, 64, 32)
    dirty = [(torch.full_like(k, 7.0), torch.full_like(v, -9.0)) for k, v in clean]
    with torch.no_grad():
        one, _ = model.step(ids, torch.tensor([0]), clean)
        two, _ = model.step(ids, torch.tensor([0]), dirty)
    assert torch.equal(one.logits, two.logits)
    assert not clean[0][0].any()
    assert bool((dirty[0][0] == 7).all())


def test_a_step_can_be_exported() -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = decoder("gemma3")

        def forward(self, ids: torch.Tensor, position: torch.Tensor, caches: Any) -> Any:
            out, caches = self.model.step(ids, position, caches)
            return out.logits, caches

    step = Step()
    caches = step.model.empty_caches(slots=8)
    example = torch.tensor([[5]], dtype=torch.int32), torch.tensor([0], dtype=torch.int32), caches
    program = torch.export.export(step, example).module()
    with torch.no_grad():
        _, caches = program(*example)
        second = torch.tensor([[9]], dtype=torch.int32), torch.tensor([1], dtype=torch.int32)
        logits, _ = program(*second, caches)
        expected = step.model(torch.tensor([[5, 9]])).logits[:, 1:]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_token_sees_those_before_it_only(name: str) -> None:
    model, ids = decoder(name), ids_of((1, 12))
    changed = ids.clone()
    changed[0, 7] = (ids[0, 7] + 1) % 160
    with torch.no_grad():
        a, b = model(ids).logits[0], model(changed).logits[0]
    torch.testing.assert_close(a[:7], b[:7], rtol=0, atol=1e-6)
    assert bool(((a[7:] - b[7:]).abs().amax(1) > 1e-4).all())


def test_local_layers_look_back_over_their_window_and_global_ones_over_everything() -> None:
    """Two local layers with a window of 5 reach back 8 positions, and no further."""
    ids = ids_of((1, 16))
    changed = ids.clone()
    changed[0, 2] = (ids[0, 2] + 1) % 160
    for every, reached in ((9, range(2, 11)), (2, range(2, 16))):
        model = decoder("gemma3", layers=2, global_every=every)
        with torch.no_grad():
            moved = (model(ids).logits - model(changed).logits).abs().amax(-1)[0] > 1e-6
        assert moved.nonzero().flatten().tolist() == list(reached)
    assert [CONFIGS["gemma3"].local(n) for n in range(3)] == [True, False, True]
    assert not CONFIGS["llama"].local(0)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_names_its_tensors_and_counts_its_work(name: str) -> None:
    config, model = CONFIGS[name], decoder(name)
    stored = {tensor.name: tensor.shape for tensor in llama.tensors(config)}
    assert {key: tuple(value.shape) for key, value in model.named_parameters()} == stored
    assert llama.parameters(config) == sum(p.numel() for p in model.parameters())
    assert next(iter(model.state_dict())) == "embedding.weight"
    assert list(model.named_buffers()) == []
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids_of((1, 11)))
    assert counter.get_total_flops() == 2 * llama.macs(config, 11)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("activations", ["float", "dynamic_int8"])
def test_a_prepared_and_a_frozen_decoder_compute_the_same(name: str, activations: Any, tmp_path: Path) -> None:
    """A tied head is stored once, on the grid of the embedding, in training and in the frozen student."""
    groups = WeightGrid(granularity=PerGroup())
    scheme = QuantScheme(weights=WeightGrid(bits=4, granularity=PerGroup()), embeddings=groups, activations=activations)
    model, config, ids = decoder(name), CONFIGS[name], ids_of((1, 9))
    prepare(model, scheme, llama.tensors(config))
    frozen = freeze(model, "llama", config, scheme, {})
    assert ("head.weight" in frozen.quantized) == (not config.tied)
    frozen.save(tmp_path)
    again = FrozenStudent.load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again.to_module()(ids).logits, model.eval()(ids).logits, rtol=0, atol=2e-5)
        away = again.to_module("float")(ids).logits - again.to_module()(ids).logits
    assert bool(away.any()) == (activations == "dynamic_int8")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kv_heads": 3}, "not a multiple of kv_heads = 3"),
        ({"architecture": "qwen2", "head_width": 32}, "width = heads"),
        ({"window": 4}, "belongs to architecture gemma3"),
        ({"head_width": 15}, "multiple of 2"),
        ({"architecture": "gpt2"}, "llama"),
        ({"rope_theta": float("inf")}, "finite"),
    ],
)
def test_sizes_that_make_no_network_are_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises((ValidationError, SpecError), match=told):
        llama.Config(**(CONFIGS["llama"].model_dump() | change))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "mistral"}, "'mistral'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"num_hidden_layers": 4}, "layers.3"),
        ({"intermediate_size": 95}, "has shape"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
            "rotary scaling",
        ),
    ],
)  # fmt: skip
def test_a_model_that_computes_something_else_is_refused(change: dict[str, Any], told: str) -> None:
    theirs = published("llama")
    with pytest.raises(TeacherError, match=told):
        from_huggingface(theirs.state_dict(), theirs.config.to_dict() | change)  # type: ignore[operator,union-attr]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"query_pre_attn_scalar": 48}, "query_pre_attn_scalar"),
        ({"final_logit_softcapping": 30.0}, "softcapping"),
        ({"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}, "not periodic"),
    ],
)
def test_a_gemma_that_computes_something_else_is_refused(change: dict[str, Any], told: str) -> None:
    theirs = published("gemma3")
    with pytest.raises(TeacherError, match=told):
        from_huggingface(theirs.state_dict(), theirs.config.to_dict() | change)  # type: ignore[operator,union-attr]


def test_old_files_with_rotary_frequencies_and_a_copy_of_the_head_are_read() -> None:
    """Keys of a config.json written by transformers 4, and tensors that follow from others."""
    theirs = published("llama_tied")
    config = {key: COMMON[key] for key in COMMON} | {"model_type": "llama", "tie_word_embeddings": True}
    config |= {"rope_theta": 50000.0, "rope_scaling": None, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16"}
    state = dict(theirs.state_dict()) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    loaded = from_huggingface(state, config, max_length=32)
    assert (loaded.config.rope_theta, loaded.config.norm_eps, loaded.config.max_length) == (50000.0, 1e-5, 32)
    assert loaded.config.head_width == 16
    assert loaded.weights["head.weight"] is loaded.weights["embedding.weight"]


def test_a_folder_of_safetensors_is_read_and_nothing_else(tmp_path: Path) -> None:
    theirs = published("qwen3")
    state = {key: value.contiguous() for key, value in theirs.state_dict().items()}
    (tmp_path / "config.json").write_text(json.dumps(theirs.config.to_dict()))  # type: ignore[operator,union-attr]
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    whole = from_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"one.safetensors": names[:20], "two.safetensors": names[20:]}
    for file, keys in shards.items():
        safetensors.torch.save_file({key: state[key] for key in keys}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: file for file, keys in shards.items() for key in keys}}))
    parts = from_folder(tmp_path, max_length=16)
    assert parts.config == whole.config.model_copy(update={"max_length": 16})
    assert all(torch.equal(parts.weights[key], value) for key, value in whole.weights.items())
    for spoiled in ({"weight_map": {"a": "../one.safetensors"}}, {"weight_map": {"a": "model.bin"}}, [], {"x": 1}):
        index.write_text(json.dumps(spoiled))
        with pytest.raises(TeacherError):
            from_folder(tmp_path)
    (tmp_path / "one.safetensors").write_bytes(b"no safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    with pytest.raises(TeacherError, match="not a model folder"):
        from_folder(tmp_path)
    with pytest.raises(TeacherError, match="not a model folder"):
        from_folder(tmp_path / "absent")
