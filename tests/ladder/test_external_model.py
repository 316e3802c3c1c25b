"""A ladder that begins with a model trained elsewhere: what is taken over, what follows from it, what is refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ladder_fixtures import NAMES, RUNGS, Finished
from safetensors.torch import load_file, save_file
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from hf_progressive import storage
from hf_progressive.config import LadderConfig, load_ladder_config, strict_yaml
from hf_progressive.data import train_tokenizer
from hf_progressive.distributed.processes import current_processes
from hf_progressive.growth.families import FAMILIES
from hf_progressive.ladder import estimates as inheritance
from hf_progressive.ladder import external_model
from hf_progressive.ladder.rung_loop import run_ladder
from hf_progressive.planning.cluster import Cluster
from hf_progressive.planning.evidence import Evidence
from hf_progressive.planning.ladder_plan import plan_ladder
from hf_progressive.planning.pricing import LadderPrice
from hf_progressive.planning.sizing import dial_fields
from hf_progressive.publishing import prepare_publication
from hf_progressive.records.ladder import read_run
from hf_progressive.report import results_table, write_report
from hf_progressive.training.flops import flops_per_token


def rungs_from(source: Path, *others: dict[str, Any], name: str = "start") -> str:
    return f"rungs={[{'name': name, 'source': str(source)}, *others]}"


def assert_same_tensors(one: Path, two: Path) -> None:
    names = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert names == sorted(path.relative_to(two) for path in two.rglob("*.safetensors"))
    for name in names:
        expected, found = load_file(one / name), load_file(two / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items()), name


def test_a_ladder_goes_on_from_a_rung_as_if_it_had_trained_it(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run, results = finished
    config = load_ladder_config(path, [rungs_from(run / NAMES[0] / "final", *RUNGS[1:], name=NAMES[0])])
    learn, asked = inheritance.estimate_fisher, []
    monkeypatch.setattr(
        inheritance, "estimate_fisher", lambda model, *a, **k: asked.append(model) or learn(model, *a, **k)
    )
    continued = run_ladder(config, tmp_path / "run")
    assert len(asked) == 2  # of the rungs that were trained; the first brought its own
    for name, one, two in zip(NAMES, results, continued, strict=True):
        assert_same_tensors(one.folder, two.folder)
        storage.check_manifest(two.folder)
        ours, theirs = two.record, one.record
        assert ours["bits_per_byte"] == pytest.approx(theirs["bits_per_byte"], rel=1e-6)
        for key in ("tokens", "cold_tokens", "data", "estimates", "cold_flops", "flops_to_match", "eta"):
            assert ours[key] == theirs[key], f"{name}: {key}"
        for key in ours["flops"].keys() - ({"evaluation"} if one is results[0] else set()):  # here measured once
            assert ours["flops"][key] == theirs["flops"][key], f"{name}: flops: {key}"
    first = continued[0].record
    assert first["origin"] == {
        "name": NAMES[0],
        "commit": None,
        "rung": NAMES[0],
        "tokens": results[0].record["tokens"],
        "bits_per_byte": results[0].record["bits_per_byte"],
        "flops": results[0].record["flops"]["train"],
        "is_complete": True,
    }
    assert not (tmp_path / "run" / NAMES[0] / "checkpoints").exists()

    # Started again, it neither trains nor looks for the source.
    moved = run.rename(run.with_name("moved"))
    try:
        again = run_ladder(config, tmp_path / "run")
    finally:
        moved.rename(run)
    assert [result.record for result in again] == [result.record for result in continued]


def test_a_later_rung_brings_all_that_went_into_it(finished: Finished, tmp_path: Path) -> None:
    path, run, results = finished
    second = results[1].record
    larger = {"name": "l3w24", "n_layer": 3, "n_embd": 24, "n_head": 3}
    config = load_ladder_config(path, [rungs_from(results[1].folder, larger), "cold=none", "phi.gamma=0"])
    licence = results[1].folder / "LICENSE.txt"
    licence.write_text("a licence")
    spent = sum(second["flops"][key] for key in ("train", "fisher", "subspace", "inherited"))
    table = plan_ladder(config).table()
    line = f"start is l2w16, which is taken over and not trained; {second['tokens']:,} tokens and {spent:.3g} FLOPs"
    assert line in table
    price = LadderPrice(plan=plan_ladder(config), cluster=Cluster(count=1), evidence=Evidence(eta=1.0)).to_dict()
    assert price["family"]["to_match"]["expected"]["flops"] == price["rungs"][1]["to_match"]["expected"]["flops"] > 0
    first, child = (result.record for result in run_ladder(config, tmp_path / "run"))
    assert first["flops"]["train"] == child["flops"]["inherited"] == spent
    assert child["data"]["first_block"] == second["data"]["first_block"] + second["data"]["blocks"]
    assert child["parent"] == "start"
    assert child["growth"]["source"]["name"] == "start"
    said = " ".join(results_table(read_run(tmp_path / "run").rungs).split())
    assert "start was not trained here but taken from l2w16; all" in said
    for name in ("start", "l3w24"):
        files = prepare_publication(tmp_path / "run" / name / "final", f"org/{name}").files
        assert files["LICENSE.txt"].content == b"a licence"
        for file, entry in files.items():
            held = entry.content if isinstance(entry.content, bytes) else entry.content.read_bytes()
            for place in (str(tmp_path), str(run.parent)):
                assert place.encode() not in held, f"{file} holds {place}"
    licence.unlink()


def test_estimates_made_otherwise_are_made_again(finished: Finished, tmp_path: Path) -> None:
    path, _, results = finished
    config = load_ladder_config(path, [rungs_from(results[0].folder), "phi.fisher.sequences=4", "cold=none"])
    (first,) = run_ladder(config, tmp_path / "run")
    before, after = results[0].record["estimates"], first.record["estimates"]
    assert (after["fisher"]["sequences"], after["fisher"]["flops"]) == (4, before["fisher"]["flops"] / 2)
    assert after["subspace"] == before["subspace"]
    fisher, other = (load_file(folder / "phi/fisher.safetensors") for folder in (results[0].folder, first.folder))
    assert not torch.equal(fisher["transformer.wpe.weight"], other["transformer.wpe.weight"])


def test_another_corpus_is_read_from_its_start(finished: Finished, tmp_path: Path) -> None:
    path, _, results = finished
    options = [rungs_from(results[0].folder, RUNGS[1]), "cold=none", "data.shuffle_seed=3", "phi.ewc_lambda=0"]
    first, child = (result.record for result in run_ladder(load_ladder_config(path, options), tmp_path / "run"))
    assert child["data"]["first_block"] == 0
    assert first["data"] == results[0].record["data"]


def plain_checkpoint(folder: Path, tokenizer: Any, family: str) -> Path:
    """A checkpoint that no ladder trained, in half precision, with a longer context than the ladder's."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=48, **sizes))
    else:
        sizes |= {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
        sizes |= {"intermediate_size": 40, "max_position_embeddings": 48, "rms_norm_eps": 1e-5}
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_any_checkpoint_can_be_the_first_rung(finished: Finished, tmp_path: Path, family: str) -> None:
    path, _, results = finished
    source = plain_checkpoint(tmp_path / "plain", AutoTokenizer.from_pretrained(results[0].folder), family)
    names = ("n_layer", "n_embd", "n_head") if family == "gpt2" else (
        "num_hidden_layers", "hidden_size", "num_attention_heads")  # fmt: skip
    child = {"name": "child", **dict(zip(names, (2, 32, 4), strict=True))}
    options = [rungs_from(source, child), "cold=[child]", f"model.family={family}", "training.inherited_fraction=1"]
    config = load_ladder_config(path, options)
    assert "start is plain, which is taken over and not trained; what went into it is not recorded" in (
        plan_ladder(config).table()
    )
    first, grown = run_ladder(config, tmp_path / "run")
    assert first.record["flops"]["train"] == first.record["tokens"] == 0
    assert first.record["cold_flops"] is None
    assert first.record["estimates"]["fisher"]["flops"] > 0  # estimated here, since none came along
    record = grown.record
    assert record["flops"]["fisher"] == first.record["estimates"]["fisher"]["flops"]
    assert record["flops"]["inherited"] == 0
    assert not record["lineage_complete"]
    assert record["eta"] is record["c_parent_over_c_cold"] is None
    assert record["max_abs_logit_diff"] <= 1e-5 * record["max_abs_logit"]
    if family == "llama":
        kept = {key: record["config"][key] for key in ("intermediate_size", "num_key_value_heads", "rms_norm_eps")}
        assert kept == {"intermediate_size": 80, "num_key_value_heads": 2, "rms_norm_eps": pytest.approx(5e-6)}
        assert storage.read_json(tmp_path / "run/child/cold/init/config.json")["rms_norm_eps"] == 1e-5
    assert record["config"].get("n_positions") or record["config"]["max_position_embeddings"] == 48
    markdown = write_report(tmp_path / "run").markdown.read_text()
    assert "start was not trained here but taken from plain" in markdown
    assert "its FLOPs count as 0" in markdown
    card = prepare_publication(grown.folder, "org/child").card
    assert "spent on its ancestors; what went into the first of them is not known" in card


@pytest.mark.parametrize("family", [name for name in FAMILIES if FAMILIES[name].normed_queries != "all_heads"])
def test_later_rungs_keep_the_ratios_of_the_first(tmp_path: Path, family: str) -> None:
    names, sizes = dial_fields(family), {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    sizes |= {names.layers: 2, names.width: 32, names.heads: 4, names.context: 48}
    sizes |= {} if names.mlp is None else {names.mlp: 80}
    sizes |= {} if names.key_value_heads is None else {names.key_value_heads: 2}
    sizes |= {} if names.head_dim is None else {names.head_dim: 8}
    AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**sizes)).save_pretrained(tmp_path / "d2")
    train_tokenizer(["to be or not to be"], vocab_size=260, training_bytes=100).save_pretrained(tmp_path / "d2")
    mapping = {
        "model": {"family": family, "context": 32, "aspect_ratio": 16, "head_dim": 8},
        "rungs": [{"name": "d2", "source": str(tmp_path / "d2")}, "d3", {"name": "d4", "depth": 4}],
        "training": {"batch_tokens": 256},
    }
    plan = plan_ladder(strict_yaml.build(LadderConfig, mapping))
    for rung, depth in zip(plan.rungs, (2, 3, 4), strict=True):
        found = {name: getattr(rung.config, name) for name in (names.layers, names.width, names.heads, names.context)}
        assert found == {names.layers: depth, names.width: 16 * depth, names.heads: 2 * depth, names.context: 48}
        if names.mlp is not None:
            assert getattr(rung.config, names.mlp) == 40 * depth
        if names.key_value_heads is not None:
            assert getattr(rung.config, names.key_value_heads) == depth
        assert rung.growth is None or rung.growth.preserves_function
        assert rung.size.flops_per_token == flops_per_token(rung.size.config, 32)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rungs.0.source=/nowhere/final", "rung start: /nowhere/final: no such folder, and no name on the Hub"),
        ("rungs.0.source=org/d4", "rung start: org/d4: no such folder here, and a source on the Hub must be pinned"),
        ("rungs.0.revision=v1", "a local folder has no revision 'v1'; leave the revision out"),
        ("model.family=llama", "rung start: l1w16 is a gpt2, model.family is 'llama'; set it to that"),
        ("model.context=64", "rung start: l1w16 reads 32 tokens, model.context is 64; lower it to 32"),
        ("data.tokenizer.name={other}", "l1w16 has another tokenizer than data.tokenizer.name"),
        ("rungs.1.n_embd=8", "rung l2w16: n_head=2 at n_embd=8 would shrink head_dim"),
        ("rungs.1.n_leyer=3", "rung l2w16: 'n_leyer' is not a field of GPT2Config; did you mean 'n_layer'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    finished: Finished, tmp_path: Path, override: str, message: str
) -> None:
    path, _, results = finished
    tokenizer = AutoTokenizer.from_pretrained(results[0].folder)
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(tmp_path / "other")
    options = [rungs_from(results[0].folder, RUNGS[1]), "cold=none", override.format(other=tmp_path / "other")]
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        plan_ladder(load_ladder_config(path, options))
    assert "\n" not in str(caught.value)


def test_damage_is_found_before_anything_is_made_of_it(finished: Finished, tmp_path: Path) -> None:
    path, _, results = finished
    shutil.copytree(results[0].folder, tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ValueError, match="model.safetensors: its SHA-256 differs from the manifest's"):
        run_ladder(load_ladder_config(path, [rungs_from(tmp_path / "damaged"), "cold=none"]), tmp_path / "run")
    assert not (tmp_path / "run" / "start").exists()


def test_a_tied_head_that_was_trained_apart_is_found_before_anything_is_estimated(
    finished: Finished, tmp_path: Path
) -> None:
    path, _, results = finished
    source = shutil.copytree(results[0].folder, tmp_path / "headed")
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.wte.weight"] + 0.1
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    for name in ("rung.json", "manifest.json"):
        (source / name).unlink()
    with pytest.raises(ValueError, match=r"headed/model.safetensors: lm_head.weight differs from .*tie_word"):
        run_ladder(load_ladder_config(path, [rungs_from(source), "cold=none"]), tmp_path / "run")
    assert not (tmp_path / "run" / "start" / "final").exists()


ATTENTION = ("flash_attention_2", "kernels-community/flash-attn", "eager")
EXPERTS = ("sonicmoe", "grouped_mm", "nope", "eager", "batched_mm")


@pytest.mark.parametrize(
    ("key", "chosen"),
    [
        *((f"{lead}attn_implementation", chosen) for lead in ("", "_") for chosen in ATTENTION),
        *((f"{lead}experts_implementation", chosen) for lead in ("", "_") for chosen in EXPERTS),
    ],
)
def test_a_way_of_computing_that_may_not_be_at_hand_is_left_to_torch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, chosen: str
) -> None:
    tokenizer = train_tokenizer(["to be or not to be"], vocab_size=260, training_bytes=100)
    source = plain_checkpoint(tmp_path / "plain", tokenizer, "gpt2")
    held = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(held | {key: chosen}))
    mapping = {
        "model": {"family": "gpt2", "context": 32},
        "rungs": [{"name": "start", "source": str(source)}, {"name": "l2", "n_layer": 2, "n_embd": 16, "n_head": 2}],
        "training": {"batch_tokens": 256},
    }
    plan = plan_ladder(strict_yaml.build(LadderConfig, mapping))
    assert plan.rungs[0].size.parameters.total == GPT2LMHeadModel(GPT2Config(**held)).num_parameters()
    run = SimpleNamespace(
        config=SimpleNamespace(rungs=[SimpleNamespace(source=str(source), revision=None)]),
        state=current_processes(),
        corpus=SimpleNamespace(tokenizer=tokenizer),
    )
    work: Any = SimpleNamespace(run=run, rung=SimpleNamespace(name="start"), trained=tmp_path / "run" / "start")
    external_model.copy(work)
    storage.check_manifest(work.trained)
    foreign = chosen not in ("eager", "batched_mm")
    assert storage.read_json(work.trained / "config.json") == (held if foreign else held | {key: chosen})
    told = f"attention by '{chosen}' runs" if "attn" in key else f"experts by '{chosen}' run"
    assert (f"plain: {told} as torch computes " in caplog.text) == foreign
    assert caplog.text.count("as torch computes") == foreign
    # With the foreign one, an error on this machine, or on another.
    model, plain = AutoModelForCausalLM.from_pretrained(work.trained), GPT2LMHeadModel(GPT2Config(**held))
    name = f"_{key.removeprefix('_')}"
    assert getattr(model.config, name) == (getattr(plain.config, name) if foreign else chosen)


@pytest.mark.parametrize("replaced", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_that_another_process_replaces_while_it_is_taken_over_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: str
) -> None:
    tokenizer = train_tokenizer(["to be or not to be"], vocab_size=260, training_bytes=100)
    source, copy_file = plain_checkpoint(tmp_path / "plain", tokenizer, "gpt2"), shutil.copyfile
    held = (source / replaced).read_bytes()
    other = held[:-1] + bytes([held[-1] ^ 1]) if replaced.endswith(".safetensors") else held + b"\n"

    def copying(one: Path, two: Path) -> None:
        copy_file(one, two)
        if (source / replaced).read_bytes() == held:  # behind the first file, whichever that is
            (tmp_path / "new").write_bytes(other)
            (tmp_path / "new").replace(source / replaced)

    monkeypatch.setattr(shutil, "copyfile", copying)
    run = SimpleNamespace(
        config=SimpleNamespace(rungs=[SimpleNamespace(source=str(source), revision=None)]),
        state=current_processes(),
        corpus=SimpleNamespace(tokenizer=tokenizer),
    )
    work: Any = SimpleNamespace(run=run, rung=SimpleNamespace(name="start"), trained=tmp_path / "run" / "start")
    with pytest.raises(
        ValueError, match=f"plain/{replaced}: changed while it was read; wait for its writer"
    ) as caught:
        external_model.copy(work)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    external_model.copy(work)  # once the writer is done
    assert (work.trained / replaced).read_bytes() == other
