"""Growth end to end: the stock class loads the result and computes what the parent computes."""

import copy
import json
import resource
import shutil

import pytest
import torch
from growth_checkpoints import WIDER, contents, flip_a_bit, gpt2, save, write_tensors
from growth_models import EVERY_FAMILY, build, config_of, fields_of
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import hf_progressive
from hf_progressive.growth import GrowthReport, grow_checkpoint, grow_model, plan_growth, verify_growth
from hf_progressive.growth.families import FAMILIES
from hf_progressive.growth.grow import RECORD_NAME
from hf_progressive.growth.optimizer import grow_optimizer_state, parameter_groups
from hf_progressive.growth.reader import INDEX_NAME, CheckpointReader
from hf_progressive.growth.verify import TOLERANCES
from hf_progressive.storage import check_manifest, read_json, sha256_file


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def random_tokens(vocabulary=96, shape=(2, 32)):
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(3))


def test_the_stock_class_loads_a_child_that_computes_the_parents_logits(parent, tmp_path):
    report = grow_checkpoint(parent, tmp_path / "child", WIDER)

    mother, child = (GPT2LMHeadModel.from_pretrained(f, dtype=torch.float64) for f in (parent, tmp_path / "child"))
    tokens = random_tokens()
    expected = logits(mother, tokens)
    assert (logits(child, tokens) - expected).abs().max() < 1e-6 * expected.abs().max()  # weights in float32
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "child"), GPT2LMHeadModel)

    assert isinstance(report, GrowthReport)
    assert report.preserves_function
    assert report.verification.preserved
    assert report.parameters_source == mother.num_parameters()
    assert report.parameters_target == child.num_parameters()
    check_manifest(tmp_path / "child")


def test_growth_in_float64_is_exact_to_rounding(tmp_path):
    mother = gpt2(torch.float64)
    save(mother, tmp_path / "parent")
    report = grow_checkpoint(tmp_path / "parent", tmp_path / "child", WIDER)
    assert report.verification.dtype == "float64"
    child = GPT2LMHeadModel.from_pretrained(tmp_path / "child")
    assert child.dtype == torch.float64
    expected = logits(mother, random_tokens())
    assert (logits(child, random_tokens()) - expected).abs().max() < 1e-12 * expected.abs().max()


def test_a_model_grows_in_memory_into_what_is_written_to_disk(parent, tmp_path):
    mother = gpt2(attn_implementation="eager")
    mother.train()
    before = copy.deepcopy(mother.state_dict())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    child = grow_model(mother, WIDER, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert child.training
    assert type(child) is GPT2LMHeadModel
    assert child.config._attn_implementation == "eager"
    assert child.config.n_embd == 40
    assert mother.config.n_embd == 24

    grow_checkpoint(parent, tmp_path / "child", WIDER, seed=7, verify=False)
    stored = GPT2LMHeadModel.from_pretrained(tmp_path / "child").state_dict()
    assert child.state_dict().keys() == stored.keys()
    assert all(torch.equal(child.state_dict()[name], tensor) for name, tensor in stored.items())

    with torch.no_grad():  # the child owns its memory
        for parameter in child.parameters():
            parameter.zero_()
    assert all(torch.equal(mother.state_dict()[name], tensor) for name, tensor in before.items())


# --- the Hub's own layout ---


def hub_layout(model):
    """Tensors as the Hub's GPT-2 files hold them: no prefix, causal masks among them."""
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in model.transformer.state_dict().items()}
    context = model.config.n_positions
    for layer in range(model.config.n_layer):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(context, context).tril().view(1, 1, context, context)
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return tensors


@pytest.mark.parametrize("shards", [1, 3])
def test_gpt2_in_the_hubs_layout_grows(parent, tmp_path, shards):
    tensors = hub_layout(gpt2())
    folder = tmp_path / "hub"
    folder.mkdir()
    GPT2Config.from_pretrained(parent).save_pretrained(folder)
    size = sum(tensor.nbytes for tensor in tensors.values())
    write_tensors(folder, tensors, max_shard_size=size if shards == 1 else size * 2 // 5)
    assert len(list(folder.glob("*.safetensors"))) == shards
    config = read_json(folder / "config.json")
    del config["architectures"]  # as in old repositories
    (folder / "config.json").write_text(json.dumps(config))

    report = grow_checkpoint(folder, tmp_path / "child", WIDER)
    assert report.verification.preserved
    grow_checkpoint(parent, tmp_path / "stock", WIDER)
    assert weights(tmp_path / "child") == weights(tmp_path / "stock")
    recorded = read_json(tmp_path / "child" / RECORD_NAME)["source"]["files"]
    assert recorded == {
        path.name: {"size": path.stat().st_size, "sha256": sha256_file(path)} for path in sorted(folder.iterdir())
    }


def weights(folder):
    reader = CheckpointReader(folder)
    return {name: reader.read(name).numpy().tobytes() for name in reader.specs}


# --- bytes ---


def test_same_seed_and_inputs_give_the_same_bytes(parent, tmp_path):
    for name in ("one", "two"):
        grow_checkpoint(parent, tmp_path / name, WIDER, seed=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    grow_checkpoint(parent, tmp_path / "other", WIDER, seed=4)
    one, other = weights(tmp_path / "one"), weights(tmp_path / "other")
    assert {name for name in one if one[name] != other[name]} >= {"transformer.h.0.attn.c_attn.weight"}


def test_neither_shards_nor_threads_change_a_weight(parent, tmp_path):
    grow_checkpoint(parent, tmp_path / "whole", WIDER)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        report = grow_checkpoint(parent, tmp_path / "shards", WIDER, max_shard_size="50KB")
    finally:
        torch.set_num_threads(threads)
    assert len(report.files) > 2
    assert (tmp_path / "shards" / INDEX_NAME).is_file()
    assert weights(tmp_path / "whole") == weights(tmp_path / "shards")
    assert report.verification.preserved


# --- dtypes ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_grown_in_float32_and_rounded_once(tmp_path, dtype):
    mother = gpt2(dtype)
    save(mother, tmp_path / "parent")
    report = grow_checkpoint(tmp_path / "parent", tmp_path / "child", WIDER)
    assert {spec.dtype for spec in CheckpointReader(tmp_path / "child").specs.values()} == {dtype}
    assert GPT2LMHeadModel.from_pretrained(tmp_path / "child", dtype="auto").dtype == dtype
    assert report.verification.preserved

    save(mother.float(), tmp_path / "wide")  # the same values, exactly
    grow_checkpoint(tmp_path / "wide", tmp_path / "exact", WIDER)
    stored, exact = CheckpointReader(tmp_path / "child"), CheckpointReader(tmp_path / "exact")
    for name in exact.specs:
        assert torch.equal(stored.read(name), exact.read(name).to(dtype)), name

    converted = grow_checkpoint(tmp_path / "parent", tmp_path / "converted", WIDER, dtype="float32")
    assert weights(tmp_path / "converted") == weights(tmp_path / "exact")
    assert converted.verification.tolerance == 1e-5
    assert converted.verification.preserved


def test_every_tensor_keeps_its_own_dtype(parent, tmp_path):
    reader = CheckpointReader(parent)
    mixed = {name: reader.read(name).to(torch.float32 if "ln_" in name else torch.bfloat16) for name in reader.specs}
    (tmp_path / "parent").mkdir()
    write_tensors(tmp_path / "parent", mixed)
    GPT2Config.from_pretrained(parent).save_pretrained(tmp_path / "parent")
    grow_checkpoint(tmp_path / "parent", tmp_path / "child", WIDER)
    specs = CheckpointReader(tmp_path / "child").specs
    assert all(spec.dtype == (torch.float32 if "ln_" in name else torch.bfloat16) for name, spec in specs.items())


def test_a_value_that_does_not_fit_the_dtype_is_refused(tmp_path):
    mother = gpt2()
    mother.transformer.wpe.weight.data[0, 0] = 1e6
    save(mother, tmp_path / "parent")
    with pytest.raises(ValueError, match=r"transformer.wpe.weight overflows torch.float16; choose dtype='bfloat16'"):
        grow_checkpoint(tmp_path / "parent", tmp_path / "child", WIDER, dtype="float16")
    assert not (tmp_path / "child").exists()


def test_the_record_says_how_to_repeat_the_growth(parent, tmp_path):
    report = grow_checkpoint(parent, tmp_path / "child", {**WIDER, "n_layer": 4}, seed=11, depth_position="spread")
    record = read_json(tmp_path / "child" / RECORD_NAME)
    assert record["version"] == hf_progressive.__version__
    assert record["source"]["name"] == str(parent)
    assert record["source"]["files"]["model.safetensors"]["sha256"] == sha256_file(parent / "model.safetensors")
    assert record["verification"] == report.verification.to_dict()
    assert record["preserves_function"] is True
    assert record["target"] == read_json(tmp_path / "child" / "config.json")
    assert record["plan"]["sizes"]["width"] == [24, 40]
    assert json.loads(json.dumps(report.to_dict()))["parameters_target"] == report.parameters_target

    target = GPT2Config(**record["target"])
    again = {"method": record["method"], "seed": record["seed"], **record["options"]}
    grow_checkpoint(parent, tmp_path / "again", target, **again)
    assert weights(tmp_path / "again") == weights(tmp_path / "child")


def test_a_difference_that_should_not_be_is_warned_of(parent, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(TOLERANCES, torch.float32, 1e-12)
    grow_checkpoint(parent, tmp_path / "child", WIDER)
    assert "child: function NOT preserved" in caplog.text
    assert "though method 'exact' keeps it" in caplog.text


def test_without_checksums_sizes_stand_alone_and_the_weights_are_the_same(parent, tmp_path):
    grow_checkpoint(parent, tmp_path / "checked", WIDER, verify=False)
    grow_checkpoint(parent, tmp_path / "child", WIDER, verify=False, checksums=False)
    assert weights(tmp_path / "child") == weights(tmp_path / "checked")
    check_manifest(tmp_path / "child")
    size = (tmp_path / "child" / "model.safetensors").stat().st_size
    assert read_json(tmp_path / "child" / "manifest.json")["files"]["model.safetensors"] == {"size": size}
    size = (parent / "model.safetensors").stat().st_size
    files = read_json(tmp_path / "child" / RECORD_NAME)["source"]["files"]
    assert files["model.safetensors"] == {"size": size}


def test_a_method_that_does_not_preserve_the_function_says_so(parent, tmp_path):
    report = grow_checkpoint(parent, tmp_path / "child", WIDER, method="random")
    assert not report.preserves_function
    assert not report.verification.preserved
    assert "NOT preserved" in report.verification.describe()
    assert grow_checkpoint(parent, tmp_path / "unchecked", WIDER, verify=False).verification is None
    assert read_json(tmp_path / "unchecked" / RECORD_NAME)["verification"] is None


# --- the optimizer's state ---


@pytest.fixture
def optimizer_file(tmp_path):
    """What Trainer saves: AdamW's state over its two groups."""
    model = gpt2()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [{"params": [parameters[name] for name in names]} for names in parameter_groups(model.config)], lr=1e-3
    )
    for _ in range(2):
        model(random_tokens(), labels=random_tokens()).loss.backward()
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    return tmp_path / "optimizer.pt"


def test_the_optimizers_state_grows_along(parent, tmp_path, optimizer_file):
    grow_checkpoint(parent, tmp_path / "child", WIDER, optimizer=optimizer_file)
    grown = torch.load(tmp_path / "child" / "optimizer.pt", weights_only=True)
    plan = plan_growth(GPT2Config.from_pretrained(parent), WIDER)
    expected = grow_optimizer_state(torch.load(optimizer_file, weights_only=True), plan)
    assert grown["param_groups"] == expected["param_groups"]
    assert grown["state"].keys() == expected["state"].keys()
    for key, entry in expected["state"].items():
        assert all(torch.equal(grown["state"][key][name], value) for name, value in entry.items())

    child = GPT2LMHeadModel.from_pretrained(tmp_path / "child")
    parameters = dict(child.named_parameters())
    groups = [{"params": [parameters[name] for name in names]} for names in parameter_groups(child.config)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    optimizer.load_state_dict(grown)
    child(random_tokens(), labels=random_tokens()).loss.backward()
    optimizer.step()

    check_manifest(tmp_path / "child")
    files = read_json(tmp_path / "child" / RECORD_NAME)["source"]["files"]
    assert files["optimizer.pt"]["sha256"] == sha256_file(optimizer_file)
    grow_checkpoint(parent, tmp_path / "again", WIDER, optimizer=optimizer_file)
    assert contents(tmp_path / "again") == contents(tmp_path / "child")


def test_a_disk_full_of_moments_leaves_nothing(parent, tmp_path, optimizer_file):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))  # the weights fit
    try:
        with pytest.raises(OSError, match="child: no space left for the optimizer's state .*; free some space"):
            grow_checkpoint(parent, tmp_path / "child", WIDER, optimizer=optimizer_file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["optimizer.pt"]


# --- generation ---


@pytest.mark.parametrize("model_type", EVERY_FAMILY)
def test_every_family_grows_from_shards_and_generates_as_before(tmp_path, model_type):
    mother = build(config_of(model_type, tie_word_embeddings=False))
    save(mother, tmp_path / "parent", max_shard_size="20KB")
    assert (tmp_path / "parent" / INDEX_NAME).is_file()
    target = fields_of(model_type, width=24, layers=3, heads=3, kv_heads=3, mlp=40, vocab=31)
    report = grow_checkpoint(tmp_path / "parent", tmp_path / "child", target, max_shard_size="50KB")
    assert report.verification.max_abs_logit_diff < 1e-7 * report.verification.max_abs_logit
    assert report.verification.preserved or FAMILIES[model_type].scaled_embedding  # rounds its scale to float32
    child, loading = type(mother).from_pretrained(tmp_path / "child", output_loading_info=True)
    assert not any(loading.values())
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "child")) is type(mother)

    prompt = torch.randint(2, 29, (3, 4), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 10, "do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}
    new_tokens = {"suppress_tokens": [29, 30]}
    assert torch.equal(child.eval().generate(prompt, **options, **new_tokens), mother.generate(prompt, **options))


@pytest.mark.parametrize("seed", range(3))
def test_greedy_generation_with_a_cache_gives_the_parents_tokens(tmp_path, seed):
    mother = gpt2(torch.float64)
    save(mother, tmp_path / "parent")
    grow_checkpoint(tmp_path / "parent", tmp_path / "child", {**WIDER, "n_positions": 48}, seed=seed, verify=False)
    child = GPT2LMHeadModel.from_pretrained(tmp_path / "child").eval()
    prompt = torch.randint(3, 96, (4, 5), generator=torch.Generator().manual_seed(seed))
    options = {"max_new_tokens": 27, "do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}
    expected = mother.generate(prompt, **options)
    assert torch.equal(child.generate(prompt, **options), expected)
    assert expected.unique().numel() > 10  # not one token over and over


# --- the Hub ---


@pytest.fixture
def hub_cache(parent, tmp_path, monkeypatch):
    """The Hub's cache as a download leaves it: snapshots of links to blobs named by their SHA-256."""
    repo = tmp_path / "cache" / "models--org--tiny"
    commit = "c" * 40
    snapshot = repo / "snapshots" / commit
    for folder in (snapshot, repo / "blobs", repo / "refs"):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copy(parent / "config.json", snapshot)
    digest = sha256_file(parent / "model.safetensors")
    shutil.copy(parent / "model.safetensors", repo / "blobs" / digest)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{digest}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return repo


def test_a_source_on_the_hub_is_found_in_the_cache_when_offline(parent, tmp_path, hub_cache):
    report = grow_checkpoint("org/tiny", tmp_path / "child", WIDER)
    assert report.revision == "c" * 40
    assert read_json(tmp_path / "child" / RECORD_NAME)["source"]["revision"] == "c" * 40
    grow_checkpoint(parent, tmp_path / "local", WIDER)
    assert weights(tmp_path / "child") == weights(tmp_path / "local")
    assert verify_growth("org/tiny", tmp_path / "child").preserved


def test_damage_to_the_hubs_cache_is_noticed(tmp_path, hub_cache):
    (blob,) = (hub_cache / "blobs").iterdir()
    flip_a_bit(blob)
    with pytest.raises(ValueError, match="SHA-256 is not the one recorded"):
        grow_checkpoint("org/tiny", tmp_path / "child", WIDER)
