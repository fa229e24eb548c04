"""What an engine reads: settings that it takes, heads of its sizes, adapters that are finite."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SmallConfig, make_llama, make_qwen3
from peft import LoraConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict
from transformers import AutoModelForCausalLM
from transformers.models.qwen3 import modeling_qwen3

from trainers.engines.export import check_heads, export_base, write_adapter
from trainers.engines.padding import padded_adapter, padded_shapes, padded_weights
from trainers.engines.settings import engine_head_size, engine_rank, settings_of, token_bytes
from trainers.models.language import load_language_model
from trainers.policies import TrainingError, adapter_parameters
from trainers.preview.dryrun import dry_run
from trainers.preview.engine_memory import EngineMemory, _on_one_device
from trainers.preview.estimates import plan
from trainers.training import task_of, train
from trainers.watch.progress import Progress


def test_ranks_and_heads_are_rounded_up_to_what_an_engine_takes() -> None:
    assert [engine_rank(rank) for rank in (1, 2, 8, 9, 64, 65, 512)] == [1, 8, 8, 16, 64, 128, 512]
    assert [engine_head_size(size) for size in (24, 36, 54, 64, 128)] == [32, 64, 64, 64, 128]


def test_settings_are_those_of_the_largest_policy_and_the_longest_response(
    small_config: SmallConfig,
) -> None:
    config = small_config(
        routing="isolated", policy_lora_rank={"aggregator": 20}, max_prompt_tokens=100,
        role_max_response_tokens={"generator": 30}, rollout_rows=40, max_response_tokens=9,
    )  # fmt: skip
    shapes = make_qwen3().config
    on_cpu = settings_of(config, shapes, on_cpu=True).arguments()
    assert (on_cpu["max_lora_rank"], on_cpu["max_loras"], on_cpu["max_cpu_loras"]) == (32, 2, 4)
    assert (on_cpu["max_model_len"], on_cpu["max_num_seqs"]) == (130, 40)
    assert on_cpu["enable_chunked_prefill"] is False, "seeds and chunks end an engine on a CPU"
    assert on_cpu["max_num_batched_tokens"] >= on_cpu["max_model_len"]
    flags = settings_of(config, shapes, on_cpu=True).flags()
    assert flags[flags.index("--logprobs-mode") + 1] == "processed_logprobs"
    assert {"--enable-lora", "--no-enable-chunked-prefill", "--enable-prefix-caching"} <= set(flags)
    on_gpu = settings_of(
        small_config(sampler_memory=0.4, sampler_sleep=True), shapes, on_cpu=False
    ).arguments()
    assert (on_gpu["gpu_memory_utilization"], on_gpu["enable_sleep_mode"]) == (0.4, True)
    assert "enable_chunked_prefill" not in on_gpu
    # 2 layers, keys and values, 1 head of 8 that the engine widens to 32, 2 bytes.
    assert token_bytes(shapes, "bfloat16") == 2 * 2 * 1 * 32 * 2


def partly_rotated(q, k, cos, sin, unsqueeze_dim=1):  # type: ignore[no-untyped-def]
    """Rotary positions in the first numbers of a head alone, written out."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    size = cos.shape[-1]

    def turned(x):  # type: ignore[no-untyped-def]
        first, rest = x[..., :size], x[..., size:]
        half = torch.cat([-first[..., size // 2 :], first[..., : size // 2]], dim=-1)
        return torch.cat([first * cos + half * sin, rest], dim=-1)

    return turned(q), turned(k)


def test_a_model_with_widened_heads_says_the_same_with_and_without_adapter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    narrow = make_qwen3(head_dim=24, rms_norm_eps=1e-14, num_attention_heads=4, hidden_size=32)
    torch.manual_seed(1)
    for name, weight in narrow.named_parameters():
        if "norm" in name:
            weight.data.uniform_(0.5, 1.5)
    shapes = padded_shapes(narrow.config, 32)
    assert shapes["rope_parameters"]["partial_rotary_factor"] == 0.75
    monkeypatch.setattr(modeling_qwen3, "apply_rotary_pos_emb", partly_rotated)
    wide = type(narrow)(type(narrow.config)(**shapes))
    wide.double().model.rotary_emb = narrow.model.rotary_emb  # of 24 numbers
    wide.load_state_dict(padded_weights(narrow.state_dict(), 24, 32))
    ids = torch.tensor([[3, 7, 1, 30, 12, 9, 5]])
    expected = narrow(ids).logits  # norms are computed in float32, whatever the dtype
    torch.testing.assert_close(wide(ids).logits, expected, rtol=0, atol=1e-6)

    lora = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(narrow, lora, adapter_name="p")
    for weight in adapter_parameters(adapted, "p").values():
        weight.data.normal_(0, 0.3)
    saved = {
        key.replace(".p.", "."): value.detach()
        for key, value in adapter_parameters(adapted, "p").items()
    }
    other = get_peft_model(wide, lora, adapter_name="p")
    set_peft_model_state_dict(other, padded_adapter(saved, 24, 32), "p")
    changed = adapted(ids).logits
    assert (changed - expected).abs().max() > 0.01
    torch.testing.assert_close(other(ids).logits, changed, rtol=0, atol=1e-6)


def test_heads_that_cannot_be_widened_are_refused_before_anything_starts() -> None:
    assert check_heads(make_llama(num_attention_heads=1, hidden_size=64).config) == 64
    with pytest.raises(
        ValueError, match=r"llama with attention heads of 8.*--sampler transformers"
    ):
        check_heads(make_llama().config)


def test_what_an_engine_can_read_is_left_where_it_is(char_model: Path, tmp_path: Path) -> None:
    """A directory with heads of 32 is served as it is; the embedded model's 24 are widened."""
    model = make_qwen3(dtype=torch.float32, head_dim=32, vocab_size=99)
    model.save_pretrained(tmp_path / "plain")
    for file in char_model.glob("tokenizer*"):
        (tmp_path / "plain" / file.name).write_bytes(file.read_bytes())
    assert export_base(str(tmp_path / "plain"), "float32", tmp_path / "out") == str(
        tmp_path / "plain"
    )
    assert not (tmp_path / "out").exists()
    where = export_base("tiny", "float32", tmp_path / "tiny")
    about = json.loads((Path(where) / "config.json").read_text())
    assert (about["head_dim"], about["dtype"]) == (32, "float32")
    loaded = AutoModelForCausalLM.from_pretrained(where)
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()


def test_an_adapter_is_written_as_peft_reads_it(small_config: SmallConfig, char_model: Path,
                                                tmp_path: Path) -> None:  # fmt: skip
    language = load_language_model(small_config(model=str(char_model)), ["a", "b"])
    for value in adapter_parameters(language.model, "b").values():
        value.data.normal_()
    write_adapter(language, "b", tmp_path / "b@1")
    saved = load_peft_weights(str(tmp_path / "b@1"), device="cpu")
    own = {k.replace(".b.", "."): v for k, v in adapter_parameters(language.model, "b").items()}
    assert saved.keys() == own.keys()
    padded = padded_adapter({k: v.detach() for k, v in own.items()}, 8, 32)
    assert all(torch.equal(saved[key], padded[key]) for key in own)
    assert json.loads((tmp_path / "b@1" / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_adapter_that_is_not_finite_is_not_written(
    bad: float, small_config: SmallConfig, char_model: Path, tmp_path: Path
) -> None:
    """An engine's cache would carry NaN to other policies, and the wrong role be blamed."""
    language = load_language_model(small_config(model=str(char_model)), ["a", "b"])
    next(iter(adapter_parameters(language.model, "b").values())).data[0, 0] = bad
    with pytest.raises(TrainingError, match="policy 'b': 1 of its parameters are not finite"):
        write_adapter(language, "b", tmp_path / "b@1")
    assert not (tmp_path / "b@1").exists()
    write_adapter(language, "a", tmp_path / "a@1")


def test_a_dry_run_counts_the_engine(
    small_config: SmallConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """tiny-0.3m: 3 layers, 2 key-value heads of 24 that become 32, prompts measured."""
    plain = small_config(rollout_rows=10, max_response_tokens=7)
    config = replace(plain, sampler="vllm")
    task = task_of(config)
    before, found = plan(plain, task), plan(config, task)
    assert (before.engine, found.memory.cache) == (None, 0)
    engine = found.engine
    assert engine is not None
    assert engine.weights == found.parameters * 4 == before.memory.weights
    sizes = [policy.num_parameters for policy in found.policies]
    assert engine.adapters == sum(sizes) * 4 * 8 // 4, "rank 4 in slots of rank 8"
    tokens = found.lengths.longest_prompt + 7
    assert engine.cache == 10 * tokens * 3 * 2 * 2 * 32 * 4
    dry_run(config)
    said = capsys.readouterr().out
    assert "engine      about 0.0 GiB: weights 0.0 GiB" in said
    assert "beside memory above, all the time; of a GPU it takes 50%" in said


def test_a_device_too_small_for_trainer_and_engine_is_told(small_config: SmallConfig) -> None:
    """80 GiB, half of them for the engine: its weights and adapters take 12, a response 1."""
    gib = 1 << 30
    need = EngineMemory(10 * gib, 2 * gib, 30 * gib, 30, 5 * gib)
    config = small_config(sampler="vllm")
    said, many = _on_one_device(config, need, 50 * gib, 20 * gib, 80 * gib)
    assert "about 90.0 GiB of 80.0 GiB: 40.0 GiB of the engine, room for 28 responses" in said
    assert "20.0 GiB while responses are drawn, 50.0 GiB in updates" in said
    assert "together take 90.0 GiB of 80.0 GiB; expected a lower --sampler-memory, or" in many
    sleeping = replace(config, sampler_sleep=True, sampler_memory=0.6)
    [said] = _on_one_device(sleeping, need, 50 * gib, 20 * gib, 80 * gib)
    assert "about 68.0 GiB of 80.0 GiB: 48.0 GiB of the engine, room for 30 responses" in said
    small = replace(config, sampler_memory=0.2)
    _, refused = _on_one_device(small, need, 50 * gib, 20 * gib, 80 * gib)
    assert "is 16.0 GiB of 80.0 GiB, too little" in refused
    assert "refuse to start" in refused


def test_a_run_without_vllm_is_refused_before_its_model_is_loaded(
    small_config: SmallConfig, quiet: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.engines.in_process.find_spec", lambda name: None)
    monkeypatch.setattr("trainers.training.load_language_models", pytest.fail)
    config = small_config(sampler="vllm")
    with pytest.raises(ValueError, match=r"make vllm VLLM=.* or --sampler transformers"):
        train(config, quiet)
    assert not config.out.exists()
