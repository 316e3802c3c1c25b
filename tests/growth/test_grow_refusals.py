"""Growth refuses what it cannot do in one clear line, and leaves on disk what was there."""

import errno
import json
import os
import resource
import shutil
import signal

import pytest
import torch
from growth_checkpoints import WIDER, contents, flip_a_bit, write_tensors
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2Model

from hf_progressive.growth import grow, grow_checkpoint, grow_model
from hf_progressive.growth.reader import CheckpointReader
from hf_progressive.growth.source import GrowthSource
from hf_progressive.storage import check_manifest, read_json, write_manifest


def edit_json(path, **fields):
    path.write_text(json.dumps({**(read_json(path) if path.exists() else {}), **fields}))


def drop(folder, *names):
    reader = CheckpointReader(folder)
    kept = {name: reader.read(name) for name in reader.specs if name not in names}
    (folder / "model.safetensors").unlink()
    write_tensors(folder, kept)


def add(folder, **tensors):
    reader = CheckpointReader(folder)
    all_tensors = {name: reader.read(name) for name in reader.specs} | tensors
    (folder / "model.safetensors").unlink()
    write_tensors(folder, all_tensors)


def rename(folder, pattern):
    reader = CheckpointReader(folder)
    tensors = {pattern.format(name): reader.read(name) for name in reader.specs}
    (folder / "model.safetensors").unlink()
    write_tensors(folder, tensors)


def replace(folder, name, change):
    reader = CheckpointReader(folder)
    tensors = {key: reader.read(key) for key in reader.specs}
    tensors[name] = change(tensors[name])
    (folder / "model.safetensors").unlink()
    write_tensors(folder, tensors)


def poison(folder, name, value):
    replace(folder, name, lambda tensor: tensor.view(-1).index_fill(0, torch.tensor(3), value).view(tensor.shape))


def with_manifest(folder, damage):
    write_manifest(folder)
    damage(folder / "model.safetensors")


def add_metadata(path):
    save_file(load_file(path), path, metadata={"format": "pt", "note": "the same tensors in another file"})


def only_pickles(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


REFUSALS = {
    "shrinking": (None, {"n_embd": 16, "n_head": 2}, ValueError, r"never shrinks: width 24 → 16"),
    "unknown field": (None, {"n_embed": 48}, ValueError, "'n_embed' is not a field of GPT2Config.*'n_embd'"),
    "unknown family": (lambda f: edit_json(f / "config.json", model_type="bert"), {}, ValueError, "'bert' cannot be"),
    "unknown to Transformers": (
        lambda f: edit_json(f / "config.json", model_type="gpt-nine"),
        {},
        ValueError,
        "model_type is 'gpt-nine', unknown to Transformers",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), {}, FileNotFoundError, "config.json: no such file"),
    "remote code": (
        lambda f: edit_json(f / "config.json", auto_map={"AutoModel": "x--y.Z"}),
        {},
        ValueError,
        "config.json: has an auto_map, so it needs remote code",
    ),
    "tokenizer with remote code": (
        lambda f: edit_json(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["t.T", None]}),
        {},
        ValueError,
        "tokenizer_config.json: has an auto_map",
    ),
    "missing and unmapped tensors": (
        lambda f: (
            drop(f, "transformer.h.1.mlp.c_fc.bias", "transformer.ln_f.weight"),
            add(f, extra=torch.zeros(2), **{"transformer.h.7.attn.bias.scale": torch.zeros(1)}),
        ),
        {},
        ValueError,
        "(?=.*extra)(?=.*h.7.attn.bias.scale)(?=.*h.1.mlp.c_fc.bias is missing)(?=.*ln_f.weight is missing)",
    ),
    "shape against config": (
        lambda f: edit_json(f / "config.json", vocab_size=95),
        {},
        ValueError,
        r"transformer.wte.weight has shape \(96, 24\), the config says \(95, 24\)",
    ),
    "NaN": (lambda f: poison(f, "transformer.wpe.weight", float("nan")), {}, ValueError, "wpe.weight holds NaN"),
    "infinity": (
        lambda f: poison(f, "transformer.h.1.ln_2.bias", float("-inf")),
        {},
        ValueError,
        "transformer.h.1.ln_2.bias holds NaN or infinite",
    ),
    "truncated": (
        lambda f: os.truncate(f / "model.safetensors", 5000),
        {},
        ValueError,
        "model.safetensors: 5000 bytes that are no whole safetensors file",
    ),
    "size against the manifest": (
        lambda f: with_manifest(f, lambda path: add_metadata(path)),
        {},
        ValueError,
        "model.safetensors: .* bytes, manifest.json says",
    ),
    "content against the manifest": (
        lambda f: with_manifest(f, flip_a_bit),
        {},
        ValueError,
        "model.safetensors: its SHA-256 is not the one recorded; the file is damaged",
    ),
    "pickled weights": (only_pickles, {}, ValueError, "pytorch_model.bin is a pickle.*convert it"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), {}, FileNotFoundError, "has neither model.safet"),
    "dtype": (None, {"dtype": "int8"}, ValueError, "'int8'; weights are stored in one of float32"),
    "method": (None, {"method": "magic"}, ValueError, "method 'magic' is not known"),
    "a size in the parent": (lambda f: edit_json(f / "config.json", n_head=0), {}, ValueError, "parent has n_head=0"),
    "a type in the parent": (
        lambda f: edit_json(f / "config.json", n_layer="x"),
        {},
        ValueError,
        "config.json: not valid .*n_layer",
    ),
    "no heads": (None, {"n_head": 0}, ValueError, "the target has n_head=0; take a number from 1"),
    "no such size": (None, {"n_layer": 10**8}, ValueError, "the target has n_layer=100000000; take a number from 1"),
    "no such depth": (None, {"n_layer": 10**5}, ValueError, "the target has 100000 layers; 10,000 are the most"),
    "another family": (None, {"model_type": "llama"}, ValueError, "a gpt2 cannot grow into a llama; leave it out"),
    "a link out of the parent": (
        lambda f: (f / "chat_template.jinja").symlink_to("/etc/hostname"),
        {},
        ValueError,
        "chat_template.jinja: is a link to /etc/hostname, outside its checkpoint",
    ),
    "dtype as a size": (None, {"target": {"dtype": "bfloat16"}}, ValueError, "dtype: .*grow takes --dtype"),
    "the class": (None, {"architectures": ["X"]}, ValueError, "architectures: the class follows from the model_type"),
    "an adapter": (
        lambda f: (
            (f / "config.json").unlink(),
            edit_json(f / "adapter_config.json", base_model_name_or_path="org/base"),
        ),
        {},
        ValueError,
        "holds a PEFT adapter of org/base and not a model; merge it first",
    ),
    "an adapter beside the config of its base": (
        lambda f: (
            (f / "model.safetensors").rename(f / "adapter_model.safetensors"),
            edit_json(f / "adapter_config.json"),
        ),
        {},
        ValueError,
        "holds a PEFT adapter of another model",
    ),
    "an adapter beside a model": (
        lambda f: edit_json(f / "adapter_config.json", base_model_name_or_path="org/base"),
        {},
        ValueError,
        "holds a PEFT adapter of org/base beside a model, .*; move adapter_config.json out of the folder, or merge",
    ),
    "integers for weights": (
        lambda f: replace(f, "transformer.h.1.mlp.c_fc.weight", lambda tensor: (100 * tensor).to(torch.int8)),
        {},
        ValueError,
        "model.safetensors: transformer.h.1.mlp.c_fc.weight is stored as int8, so the weights are quantized",
    ),
    "quantized": (
        lambda f: edit_json(f / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        {},
        ValueError,
        "parent/config.json: a quantized checkpoint cannot be grown; dequantize it first",
    ),
    "a family in capitals": (
        lambda f: edit_json(f / "config.json", model_type="GPT2"),
        {},
        ValueError,
        "model_type is 'GPT2', unknown to Transformers; did you mean 'gpt2'",
    ),
    "GGUF": (
        lambda f: ((f / "config.json").unlink(), (f / "model.safetensors").rename(f / "m-Q4_K.gguf")),
        {},
        ValueError,
        "m-Q4_K.gguf: is GGUF, .*GgufConfig",
    ),
    "a model loaded from GGUF": (
        lambda f: edit_json(f / "config.json", quantization_config={"quant_method": "gguf", "gguf_file": "m.gguf"}),
        {},
        ValueError,
        "loaded from GGUF holds quantized blocks .*dequantize=True",
    ),
    "saved under torch.compile": (
        lambda f: rename(f, "_orig_mod.{}"),
        {},
        ValueError,
        "under torch.compile; .*_orig_mod",
    ),
    "saved under PEFT": (
        lambda f: rename(f, "base_model.model.{}"),
        {},
        ValueError,
        r"under PEFT; call merge_and_unload\(\)",
    ),
    "saved under DDP": (lambda f: rename(f, "module.{}"), {}, ValueError, "under DistributedDataParallel"),
    "revision": (None, {"revision": "main"}, ValueError, "a local folder has no revision 'main'"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_one_clear_line_and_leave_nothing(parent, tmp_path, case):
    damage, fields, error, text = REFUSALS[case]
    source = tmp_path / "parent"
    shutil.copytree(parent, source)
    if damage is not None:
        damage(source)
    options = {name: value for name, value in fields.items() if name in ("dtype", "method", "revision")}
    target = {name: value for name, value in fields.items() if name not in options} or WIDER
    target = target.get("target", target)
    output = tmp_path / "out" / "child"
    with pytest.raises(error, match=text) as raised:
        grow_checkpoint(source, output, target, **options)
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "out").glob("*")) == []


@pytest.mark.parametrize("source", ["no/such/folder", "./gone", "nobody/nothing"])
def test_a_source_that_is_nowhere_is_refused(tmp_path, source):
    with pytest.raises(FileNotFoundError, match=source) as raised:
        grow_checkpoint(source, tmp_path / "child", WIDER)
    assert "\n" not in str(raised.value)


def test_an_existing_output_is_refused_or_replaced_when_the_new_one_is_complete(parent, tmp_path):
    output = tmp_path / "child"
    grow_checkpoint(parent, output, WIDER, verify=False)
    old = contents(output)
    with pytest.raises(FileExistsError, match="child exists already"):
        grow_checkpoint(parent, output, WIDER)
    with pytest.raises(ValueError, match="never shrinks"):
        grow_checkpoint(parent, output, {"n_layer": 1}, overwrite=True)
    assert contents(output) == old
    grow_checkpoint(parent, output, WIDER, seed=1, overwrite=True)
    assert contents(output) != old
    assert [path.name for path in tmp_path.iterdir()] == ["child"]


def test_the_source_is_never_replaced(parent, tmp_path):
    shutil.copytree(parent, tmp_path / "parent")
    with pytest.raises(ValueError, match="is the source itself"):
        grow_checkpoint(tmp_path / "parent", tmp_path / "parent", WIDER, overwrite=True)
    assert contents(tmp_path / "parent") == contents(parent)


def test_only_a_checkpoint_is_ever_replaced(parent, tmp_path):
    run, thesis = tmp_path / "run", tmp_path / "thesis"
    shutil.copytree(parent, run / "small" / "final")
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="run: holds the source"):
        grow_checkpoint(run / "small" / "final", run, WIDER, overwrite=True)
    with pytest.raises(FileExistsError, match="thesis: holds no config.json, so it is no checkpoint to be replaced"):
        grow_checkpoint(parent, thesis, WIDER, overwrite=True)
    assert contents(tmp_path) == before


def test_a_full_disk_leaves_the_old_output(parent, tmp_path):
    output = tmp_path / "child"
    grow_checkpoint(parent, output, WIDER, verify=False)
    old = contents(output)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="child: File too large .*; free some space and start again") as raised:
            grow_checkpoint(parent, output, WIDER, seed=1, overwrite=True, verify=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(raised.value)
    assert contents(output) == old
    assert [path.name for path in tmp_path.iterdir()] == ["child"]


def test_space_is_asked_for_before_anything_is_written(parent, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(
        OSError, match=r"child: .*257,440 bytes are needed, 1,000 are free .*; free some space"
    ) as raised:
        grow_checkpoint(parent, tmp_path / "child", WIDER)
    assert raised.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_cannot_be_written_is_refused(parent):
    with pytest.raises(OSError, match="/proc/child: cannot be created"):
        grow_checkpoint(parent, "/proc/child", WIDER)


def test_a_process_killed_midway_leaves_no_output(parent, tmp_path, monkeypatch):
    def die(*args, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    process = os.fork()
    if process == 0:
        try:  # whatever happens, this process must not go on with the tests
            monkeypatch.setattr(grow, "compare_logits", die)  # everything is written then
            grow_checkpoint(parent, tmp_path / "child", {"n_layer": 3})
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "child").exists()
    grow_checkpoint(parent, tmp_path / "child", {"n_layer": 3}, verify=False)
    check_manifest(tmp_path / "child")


def test_a_tied_head_that_was_trained_apart_is_not_dropped(parent, tmp_path):
    shutil.copytree(parent, tmp_path / "parent")
    (tmp_path / "parent" / "manifest.json").unlink(missing_ok=True)
    embedding = CheckpointReader(tmp_path / "parent").read("transformer.wte.weight")
    add(tmp_path / "parent", **{"lm_head.weight": embedding.clone()})
    grow_checkpoint(tmp_path / "parent", tmp_path / "same", WIDER, verify=False)
    add(tmp_path / "parent", **{"lm_head.weight": embedding + 0.1})
    with pytest.raises(
        ValueError, match=r"parent/model.safetensors: lm_head.weight differs from .*wte.weight, .* tie_word_embeddings"
    ):
        grow_checkpoint(tmp_path / "parent", tmp_path / "child", WIDER)
    assert not (tmp_path / "child").exists()


def test_a_padding_token_outside_of_the_vocabulary_is_named(parent, tmp_path):
    shutil.copytree(parent, tmp_path / "parent")
    (tmp_path / "parent" / "manifest.json").unlink(missing_ok=True)
    rows = read_json(tmp_path / "parent" / "config.json")["vocab_size"]
    edit_json(tmp_path / "parent" / "config.json", pad_token_id=rows)
    with pytest.raises(ValueError, match=f"pad_token_id {rows} is outside of the vocabulary .* vocab_size={rows + 1}"):
        grow_checkpoint(tmp_path / "parent", tmp_path / "child", {**WIDER, "vocab_size": rows + 1})
    assert not (tmp_path / "child").exists()


@pytest.mark.parametrize("replaced", ["config.json", "model.safetensors"])
def test_a_parent_that_another_process_replaces_meanwhile_is_refused(parent, tmp_path, monkeypatch, replaced):
    source, output = shutil.copytree(parent, tmp_path / "source"), tmp_path / "out"
    copy = GrowthSource.copy_companions

    def replacing(origin, folder):
        copy(origin, folder)
        (tmp_path / "new").write_bytes((source / replaced).read_bytes())
        os.replace(tmp_path / "new", source / replaced)

    monkeypatch.setattr(GrowthSource, "copy_companions", replacing)
    with pytest.raises(ValueError, match=f"{replaced}: changed while it was read; wait for its writer, and try again"):
        grow_checkpoint(source, output, WIDER, verify=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_model_and_a_folder_each_have_a_function_that_grows_them(parent, tmp_path):
    with pytest.raises(ValueError, match="grow_model takes a model in memory; grow_checkpoint grows a folder's"):
        grow_model(parent, WIDER)
    model = GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=1))  # without a head, too
    with pytest.raises(ValueError, match="source is a GPT2Model; give a folder or a Hub id, or use grow_model"):
        grow_checkpoint(model, tmp_path / "child", WIDER)
    assert type(grow_model(model, {"n_layer": 2})) is GPT2Model
