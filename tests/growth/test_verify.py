"""The check of a growth against a comparison written out in the test, and its own limits."""

import copy
import errno
import json
import os
import re
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from growth_checkpoints import gpt2, save, write_tensors
from transformers import AutoConfig, AutoModelForCausalLM, GPT2LMHeadModel, modeling_utils

from hf_progressive import cli
from hf_progressive.distributed.batching import cpu_shortage
from hf_progressive.growth import GrowthCheck, grow_checkpoint, grow_model, stock_model, verify_growth
from hf_progressive.growth import verify as verify_module
from hf_progressive.growth.families import family_of
from hf_progressive.growth.verify import TOLERANCES


def perturbed(model, scale):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return other


@pytest.mark.parametrize("new_tokens", [0, 5])
def test_the_figures_are_those_of_a_slow_loop(new_tokens):
    mother = gpt2(torch.float64)
    child = perturbed(grow_model(mother, {"vocab_size": 96 + new_tokens, "n_positions": 40}), 1e-3)
    check = verify_growth(mother, child, dtype="float64", sequences=3, seed=5)

    generator = torch.Generator().manual_seed(5)
    difference = largest = kl = 0.0
    for _ in range(3):
        tokens = torch.randint(96, (1, 32), generator=generator)
        with torch.no_grad():
            expected, actual = mother(tokens).logits[0], child(tokens).logits[0, :, :96]
        for one, other in zip(expected, actual, strict=True):
            p, q = one.exp() / one.exp().sum(), other.exp() / other.exp().sum()
            kl += sum(p[i] * (p[i] / q[i]).log() for i in range(96)).item() / (3 * 32)
            difference = max(difference, (one - other).abs().max().item())
            largest = max(largest, one.abs().max().item())
    assert check.max_abs_logit_diff == pytest.approx(difference, rel=1e-12)
    assert check.max_abs_logit == pytest.approx(largest, rel=1e-12)
    assert check.kl == pytest.approx(kl, rel=1e-9)
    assert (check.sequences, check.length) == (3, 32)
    assert not check.preserved


@pytest.mark.parametrize(("dtype", "detected"), [("float64", 1e-7), ("float32", 1e-3)])
def test_a_small_error_is_told_from_rounding(dtype, detected):
    mother = gpt2(torch.float64)
    child = grow_model(mother, {"n_embd": 40, "n_head": 5, "n_layer": 3})
    assert verify_growth(mother, child, dtype=dtype).preserved
    assert not verify_growth(mother, perturbed(child, detected), dtype=dtype).preserved


def test_the_tutorial_states_the_tolerances():
    page = (Path(__file__).parents[2] / "docs/tutorials/grow.md").read_text(encoding="utf-8")
    sentence = page.partition("It exits with 1 where")[2].partition(").")[0]
    stated = [float(figure) for figure in re.findall(r"\de-\d", sentence)]
    assert stated == [TOLERANCES[stored] for stored in (torch.float32, torch.float16, torch.bfloat16)]


def test_the_tolerance_is_that_of_the_coarser_of_arithmetic_and_stored_weights():
    mother = gpt2()
    for stored in TOLERANCES:
        child = grow_model(mother, {"n_embd": 40, "n_head": 5}).to(stored)
        expected = max(TOLERANCES[stored], 1e-5)
        assert verify_growth(mother, child).tolerance == expected
    assert verify_growth(mother.double(), mother.double(), dtype="float64").tolerance == 1e-9


def test_models_folders_and_paths_are_taken_alike(parent, tmp_path):
    mother = gpt2()
    child = grow_model(mother, {"n_layer": 3})
    folder = save(child, tmp_path / "child")
    checks = {verify_growth(a, b) for a in (mother, parent, str(parent)) for b in (child, folder)}
    assert len(checks) == 1
    (check,) = checks
    record = json.loads(json.dumps(check.to_dict()))
    assert record["preserved"] is True
    assert GrowthCheck(**{name: value for name, value in record.items() if name != "preserved"}) == check
    assert check.describe().startswith("function preserved: max |Δlogit|")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "nanochat"])
def test_norms_that_compute_in_float32_do_not_blur_the_check_in_float64(model_type, attention):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "num_key_value_heads": 3}
    tokens = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    config = AutoConfig.for_model(
        model_type, **sizes, **tokens, head_dim=8, intermediate_size=32, tie_word_embeddings=False
    )
    mother = AutoModelForCausalLM.from_config(config, attn_implementation=attention).double()
    child = grow_model(mother, {"hidden_size": 40, "num_attention_heads": 5})
    check = verify_growth(mother, child, dtype="float64", max_length=16)
    assert check.preserved, check.describe()
    with torch.no_grad():  # the stock forward pass, as it is
        ids = torch.randint(64, (1, 16))
        stock = (mother(ids).logits - child(ids).logits).abs().max()
    assert 1e-9 * check.max_abs_logit < stock < 1e-5 * check.max_abs_logit


def test_weights_are_compared_as_the_file_has_them_whatever_dtype_the_configuration_names(parent, tmp_path):
    shutil.copytree(parent, tmp_path / "parent")
    path = tmp_path / "parent" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "bfloat16"}))
    report = grow_checkpoint(tmp_path / "parent", tmp_path / "child", {"n_layer": 4})
    assert report.verification.preserved
    assert report.verification.tolerance == TOLERANCES[torch.float32]


def test_a_model_passed_in_is_left_as_it_is():
    mother = gpt2().train()
    before = copy.deepcopy(mother.state_dict())
    verify_growth(mother, mother, dtype="float64")
    assert mother.training
    assert mother.dtype == torch.float32
    assert all(torch.equal(mother.state_dict()[name], tensor) for name, tensor in before.items())


def test_long_contexts_are_cut_to_max_length():
    mother = gpt2()
    assert verify_growth(mother, mother, max_length=7, sequences=1).length == 7


def not_finite():
    model = gpt2()
    model.transformer.ln_f.bias.data[0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("grown", "options", "text"),
    [
        (gpt2, {"dtype": "bfloat16"}, "dtype is 'bfloat16'; growth is verified in float32 or float64"),
        (gpt2, {"sequences": 0}, "sequences is 0; at least 1"),
        (gpt2, {"max_length": 0}, "max_length is 0; at least 1"),
        (lambda: gpt2(vocab_size=90), {}, "knows 90 tokens in a context of 32, its parent 96 in 32"),
        (lambda: gpt2(n_positions=16), {}, "knows 96 tokens in a context of 16, its parent 96 in 32"),
        (not_finite, {}, "the logits of GPT2LMHeadModel are not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(grown, options, text):
    with pytest.raises(ValueError, match=text) as raised:
        verify_growth(gpt2(), grown(), **options)
    assert "\n" not in str(raised.value)


def logits_of_a_new_model(folder):
    """What the stock class makes of a folder's config, by itself."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return model(torch.zeros(1, 8, dtype=torch.long), use_cache=False).logits


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20, "bos_token_id": 0,
         "eos_token_id": 0, "max_position_embeddings": 8}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "change"),
    [
        ("falcon", {"new_decoder_architecture": True, "parallel_attn": False}),  # fails when it runs: AttributeError
        ("falcon", {"multi_query": False, "num_kv_heads": 1}),  # RuntimeError
        ("falcon", {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1, "parallel_attn": False}),  # name
        ("gpt_neox", {"hidden_act": "nope"}),  # when it is built: KeyError
        ("olmo3", {"sliding_window": None}),  # ValueError, which does not say whose
    ],
)
def test_a_config_with_which_the_stock_class_itself_fails_is_named(tmp_path, model_type, change):
    config = AutoConfig.for_model(model_type, **SMALL | change)
    family = family_of(config)
    tensors = {name: torch.ones(family.shape(rule, config)) for name, rule, _ in family.tensors(config)}
    folder = tmp_path / "odd"
    config.save_pretrained(folder)
    write_tensors(folder, tensors)
    with pytest.raises(Exception, match=".") as raised_by_stock:
        logits_of_a_new_model(folder)

    for run in (
        lambda: verify_growth(folder, folder, max_length=8),
        lambda: grow_checkpoint(folder, tmp_path / "child", {"num_hidden_layers": 2}),
    ):
        with pytest.raises(ValueError, match=r"odd/config.json: not valid \(.*; the stock class does not") as raised:
            run()
        assert str(raised_by_stock.value).splitlines()[0] in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "child").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize(
    "chosen",
    ["flash_attention_2", "flex_attention", "kernels-community/flash-attn", "nobody/nothing", "nope", {"": "x"}, []],
)
def test_attention_that_is_not_at_hand_is_compared_in_one_that_is(parent, tmp_path, monkeypatch, caplog, key, chosen):
    def asked(*arguments, **options):
        raise AssertionError("a kernel was looked for")

    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", asked)
    monkeypatch.setattr(modeling_utils, "is_kernels_available", lambda: True)
    shutil.copytree(parent, tmp_path / "odd")
    path = tmp_path / "odd" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: chosen, "experts_implementation": "nope"}))
    assert verify_growth(tmp_path / "odd", parent) == verify_growth(parent, parent)
    assert f"{path}: attention by " in caplog.text
    assert grow_checkpoint(tmp_path / "odd", tmp_path / "child", {"n_layer": 4}).verification.preserved
    assert not {key, "experts_implementation"} & json.loads((tmp_path / "child/config.json").read_text()).keys()
    # What CORE scores is loaded so, too.
    tokens, plain = torch.arange(8)[None], stock_model.load_whole(str(parent), torch.float32)
    odd = stock_model.load_whole(str(tmp_path / "odd"), torch.float32)
    with torch.no_grad():
        assert torch.equal(odd(tokens).logits, plain(tokens).logits)


@pytest.mark.parametrize("chosen", ["eager", "sdpa"])
def test_attention_that_is_at_hand_is_not_spoken_of(tmp_path, caplog, chosen):
    config = AutoConfig.for_model("gemma2", **SMALL, head_dim=8, num_key_value_heads=2, intermediate_size=24)
    folder = save(AutoModelForCausalLM.from_config(config), tmp_path / "gemma")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": chosen}))  # Gemma 2 has no sdpa
    assert verify_growth(folder, folder).preserved
    assert "attention by" not in caplog.text


@pytest.mark.parametrize(
    "block",
    [{}, {"quant_method": "nope"}, {"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes"}],
)
def test_a_quantized_checkpoint_is_not_compared(parent, tmp_path, block):
    shutil.copytree(parent, tmp_path / "odd")
    path = tmp_path / "odd" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": block}))
    for pair in ((parent, tmp_path / "odd"), (tmp_path / "odd", parent)):
        with pytest.raises(ValueError, match="odd/config.json: quantization_config: a quantized checkpoint cannot be"):
            verify_growth(*pair)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_what_a_device_raises_is_not_laid_to_the_config(monkeypatch, error):
    mother = gpt2()
    monkeypatch.setattr(mother, "forward", lambda **options: (_ for _ in ()).throw(error("of the device")))
    with pytest.raises(error, match="of the device"):
        stock_model.stock_logits(mother, torch.zeros(1, 4, dtype=torch.long))


ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "429496729600 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (RuntimeError(ALLOCATOR), ": 429,496,729,600 bytes more were asked for"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes."), ": 64 bytes more"),
        (MemoryError(), " to load and run both models"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), " to load and run both models"),
    ],
)
@pytest.mark.parametrize("where", ["from_pretrained", "forward"])
def test_memory_that_does_not_suffice_is_not_laid_to_the_config(
    parent, tmp_path, monkeypatch, capsys, where, error, asked
):
    def fail(*arguments, **options):
        raise error

    owner = stock_model.AutoModelForCausalLM if where == "from_pretrained" else GPT2LMHeadModel
    monkeypatch.setattr(owner, where, fail)
    remedy = r" to load and run both models; grow without the check \(--no-verify, verify=False\), or take a machine"
    for run in (
        lambda: verify_growth(parent, parent),
        lambda: grow_checkpoint(parent, tmp_path / "c", {"n_layer": 3}),
    ):
        with pytest.raises(MemoryError, match=f"^the machine's memory does not suffice.*{remedy}") as raised:
            run()
        assert asked in str(raised.value)
    assert not (tmp_path / "c").exists()
    assert cli.main(["verify", str(parent), str(parent)]) == cli.EXIT_CHECK_FAILED
    assert capsys.readouterr().err.splitlines()[-1] == f"hf-progressive: error: {raised.value}"


def test_what_torch_raises_where_there_is_no_memory_is_known():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 46, dtype=torch.float32)
    assert cpu_shortage(raised.value) == (
        f"the machine's memory does not suffice: {1 << 48:,} bytes more were asked for"
    )


def test_a_folder_that_is_not_there_is_refused(parent, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone: no such folder"):
        verify_growth(parent, tmp_path / "gone")


def test_damaged_weights_are_named(tmp_path):
    mother = gpt2()
    weights = save(grow_model(mother, {"n_layer": 3}), tmp_path / "cut") / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 500)
    with pytest.raises(ValueError, match=r"cut/model\.safetensors: \d+ bytes that are no whole safetensors file"):
        verify_growth(mother, tmp_path / "cut")


def test_a_device_too_small_for_both_models_leaves_the_check_to_the_cpu(tmp_path, monkeypatch):
    mother = save(gpt2(), tmp_path / "parent")
    expected, load, asked = verify_growth(mother, mother), verify_module.load_stock, []

    def in_little_memory(source, dtype, device, revision):
        asked.append(device.type)
        if device.type == "cuda":
            raise torch.OutOfMemoryError
        return load(source, dtype, device, revision)

    monkeypatch.setattr(verify_module, "load_stock", in_little_memory)
    monkeypatch.setattr(stock_model, "accelerator", lambda: torch.device("cuda"))
    assert verify_growth(mother, mother) == expected
    assert asked == ["cuda", "cpu", "cpu"]


def test_the_parent_goes_before_the_child_comes_where_its_logits_are_smaller(parent, tmp_path, monkeypatch):
    held, models, load = [], [], verify_module.load_stock

    def watched(*arguments):
        held.append(sum(model() is not None for model in models))
        model, stored_in = load(*arguments)
        models.append(weakref.ref(model))
        return model, stored_in

    monkeypatch.setattr(verify_module, "load_stock", watched)
    grow_checkpoint(parent, tmp_path / "child", {"n_layer": 3}, verify=False)
    one = verify_growth(parent, tmp_path / "child", sequences=1, max_length=8)
    assert held == [0, 0]
    models.clear()
    monkeypatch.setattr(verify_module, "_DOUBLE_BYTES", 1e9)  # logits larger than the model: both are held
    assert verify_growth(parent, tmp_path / "child", sequences=1, max_length=8) == one
    assert held[2:] == [0, 1]
