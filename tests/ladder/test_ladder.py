"""What a run leaves: checkpoints, records, and what they add up to."""

from pathlib import Path

import pytest
import torch
from ladder_fixtures import NAMES, RUNGS, Finished, write_ladder
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from hf_progressive import storage
from hf_progressive.config import load_ladder_config
from hf_progressive.ladder.rung_loop import run_ladder
from hf_progressive.planning.cluster import Cluster
from hf_progressive.planning.ladder_plan import plan_ladder
from hf_progressive.planning.pricing import LadderPrice
from hf_progressive.publishing import prepare_publication
from hf_progressive.records.ladder import read_run

ROOT = Path(__file__).parents[2]


def test_every_rung_is_a_stock_checkpoint(finished: Finished) -> None:
    _, run, results = finished
    assert [result.name for result in results] == NAMES
    for rung, result in zip(RUNGS, results, strict=True):
        storage.check_manifest(result.folder)
        model = AutoModelForCausalLM.from_pretrained(result.folder)
        assert type(model).__name__ == "GPT2LMHeadModel"
        assert (model.config.n_layer, model.config.n_embd) == (rung["n_layer"], rung["n_embd"])
        assert len(AutoTokenizer.from_pretrained(result.folder)) <= model.config.vocab_size
    generate = pipeline("text-generation", model=str(run / NAMES[-1] / "final"))
    assert len(generate("3 and ", max_new_tokens=4, do_sample=False)[0]["generated_text"]) > len("3 and ")


def test_a_grown_rung_starts_as_its_parent(finished: Finished) -> None:
    _, run, results = finished
    tokens = torch.randint(300, (2, 32), generator=torch.Generator().manual_seed(0))
    for parent, child in zip(NAMES, NAMES[1:], strict=False):
        before = AutoModelForCausalLM.from_pretrained(run / parent / "final")(tokens).logits
        after = AutoModelForCausalLM.from_pretrained(run / child / "init")(tokens).logits
        assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    for result in results[1:]:
        record = result.record
        assert record["max_abs_logit_diff"] <= 1e-5 * record["max_abs_logit"]


def test_the_ladders_record_holds_what_the_rungs_add_up_to(finished: Finished) -> None:
    path, run, results = finished
    totals = storage.read_json(run / "ladder.json")["totals"]
    first, second, last = (result.record for result in results)
    spent = [sum(record["flops"][key] for key in ("train", "fisher", "subspace")) for record in (first, second, last)]
    assert totals["last_model"] == NAMES[-1]
    assert totals["inherited_as_trained"] == pytest.approx(sum(spent))
    assert totals["last_alone"] == last["cold"]["flops"]
    matched = last["flops_to_match"]
    grown = None if matched is None else sum(spent[:2]) + matched
    assert totals["last_grown"] == (grown and pytest.approx(grown))
    assert totals["last_model_cost"] == (grown and pytest.approx(grown / last["cold"]["flops"]))
    assert totals["last_model_cost"] == last["last_model_cost"]
    text = (run / "ladder.json").read_text()
    storage.write_json(run / "ladder.json", storage.read_json(run / "ladder.json") | {"totals": None})
    run_ladder(load_ladder_config(path), run)  # as if it had been killed after the last rung's record
    assert (run / "ladder.json").read_text() == text


def test_the_record_adds_up(finished: Finished) -> None:
    path, run, results = finished
    first, second, third = (result.record for result in results)
    validated = (run / "data" / "validation.bin").stat().st_size // 2  # tokens, in two bytes each
    priced = LadderPrice(plan=plan_ladder(load_ladder_config(path)), cluster=Cluster(count=1)).to_dict()
    for record, price in zip((first, second, third), priced["rungs"], strict=True):
        spent = len(record["curve"]) * validated * record["flops"]["per_token"] / 3
        assert record["flops"]["evaluation"] == pytest.approx(spent)
        assert price["validation"]["points"] == len(record["curve"])
        assert record["seconds"]["evaluate"] > 0
        for name, estimate in record["estimates"].items():
            assert price["estimates"]["by_term"][name] == estimate["flops"]
    baseline = third["cold"]
    spent = len(baseline["curve"]) * validated * third["flops"]["per_token"] / 3
    assert baseline["evaluation_flops"] == pytest.approx(spent)
    assert 0 < baseline["evaluation_seconds"] < baseline["seconds"]
    assert first["parent"] is None
    assert first["cold"] is None
    assert first["flops"]["inherited"] == 0
    for parent, child in ((first, second), (second, third)):
        estimates = {name: estimate["flops"] for name, estimate in parent["estimates"].items()}
        assert child["parent"] == parent["name"]
        assert child["flops"]["fisher"] == estimates["fisher"] > 0
        assert child["flops"]["subspace"] == estimates["subspace"] > 0
        own = parent["flops"]["train"] + parent["flops"]["fisher"] + parent["flops"]["subspace"]
        assert child["flops"]["inherited"] == own + parent["flops"]["inherited"]
        assert child["data"]["first_block"] == parent["data"]["first_block"] + parent["data"]["blocks"]
        assert child["curve"][0]["flops"] == sum(estimates.values())
        assert child["curve"][-1]["flops"] == pytest.approx(sum(estimates.values()) + child["flops"]["train"])
    for record in (first, second, third):
        steps = [point["step"] for point in record["curve"]]
        assert steps[0] == 0
        assert steps[-1] * 128 == record["tokens"]
        assert record["flops"]["train"] == record["tokens"] * record["flops"]["per_token"]
        assert record["curve"][-1]["bits_per_byte"] == record["bits_per_byte"]
    cold = third["cold"]
    assert cold["tokens"] == third["cold_tokens"]
    assert third["gap_bits_per_byte"] == pytest.approx(third["bits_per_byte"] - cold["bits_per_byte"])
    assert third["c_parent_over_c_cold"] == pytest.approx(second["cold_flops"] / third["cold_flops"])
    if third["flops_to_match"] is not None:
        saved = cold["flops"] - third["flops_to_match"]
        assert third["eta"] == pytest.approx(saved / third["flops"]["inherited"])
        assert third["saving"] == pytest.approx(saved / cold["flops"])


def test_the_record_says_how_fast_it_trained_and_the_log_only_what_it_learned(
    finished: Finished,
) -> None:
    _, run, results = finished
    for record in (result.record for result in results):
        speed, spent = record["throughput"], record["throughput"]["seconds"]
        assert set(spent) == {"training", "evaluation", "saving"}
        assert min(spent.values()) > 0
        assert sum(spent.values()) <= record["seconds"]["train"] + record["seconds"].get("evaluate", 0.0)
        assert speed["tokens"] == record["tokens"]
        assert speed["tokens_per_second"] == pytest.approx(record["tokens"] / spent["training"])
        assert (speed["mfu"], speed["device"], speed["processes"]) == (None, "cpu", 1)
        assert [entry["step"] for entry in speed["log"]] == [entry["step"] for entry in record["training_log"]]
        assert all(entry["tokens_per_second"] > 0 for entry in speed["log"])
        assert not any("tokens_per_second" in entry for entry in record["training_log"])
        # The speeds of the stretches between logs are those of the whole.
        steps = [0] + [entry["step"] for entry in speed["log"]]
        stretches = [
            (after - before) * 128 / entry["tokens_per_second"]
            for before, after, entry in zip(steps, steps[1:], speed["log"], strict=False)
        ]
        assert sum(stretches) == pytest.approx(spent["training"], rel=0.2, abs=0.2)
    assert len(read_run(run).rungs) == len(results)


def test_nothing_published_tells_where_the_run_lay(finished: Finished) -> None:
    path, run, results = finished
    corpus = storage.read_json(run / "data" / "corpus.json")
    for result in results:
        assert result.record["growth"] is None or result.record["growth"]["source"]["name"] == result.record["parent"]
        assert result.record["data"]["block_tokens"] == 32
        assert result.record["data"]["corpus_blocks"] == corpus["counts"]["train_tokens"] // 32
        assert result.record["data"]["fingerprint"] == corpus["fingerprint"]
        files = prepare_publication(result.folder, f"org/{result.name}").files
        assert (result.record["growth"] is None) == ("growth.json" not in files)
        for name, file in files.items():
            content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
            for place in (str(path.parent), str(ROOT), str(Path.home())):
                assert place.encode() not in content, f"{name} holds {place}"


def test_the_penalty_is_logged_and_absent_from_the_first_rung(
    finished: Finished,
) -> None:
    _, run, results = finished
    first, second, _ = (result.record for result in results)
    assert first["phi"] is None
    assert not any("phi/ewc" in entry for entry in first["training_log"])
    assert second["phi"]["ewc_lambda"] == 0.1
    weights = [entry.get("phi/lambda", 0.0) for entry in second["training_log"]]
    assert 0.0 < weights[0] <= 0.1
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] == 0.0, "the default schedule is over by the middle of the run"
    assert any(entry.get("phi/ewc", 0) > 0 for entry in second["training_log"])
    fisher = load_file(run / NAMES[0] / "final" / "phi" / "fisher.safetensors")
    assert set(fisher) == set(dict(AutoModelForCausalLM.from_pretrained(run / NAMES[0] / "final").named_parameters()))


def test_the_baseline_reads_what_the_child_reads(finished: Finished) -> None:
    config = load_ladder_config(finished[0])
    third = plan_ladder(config).rungs[2]
    assert third.trains_baseline
    assert third.first_block == sum(r.steps for r in plan_ladder(config).rungs[:2]) * 128 // 32


def test_a_rung_can_grow_from_before_its_parents_decay(tmp_path: Path) -> None:
    path = write_ladder(tmp_path)
    config = load_ladder_config(path, ["growth.parent=stable", "cold=none", f"rungs={RUNGS[:2]}"])
    run_ladder(config, tmp_path / "run")
    tokens = torch.randint(300, (2, 32), generator=torch.Generator().manual_seed(0))
    stable, final, child = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "run" / folder)(tokens).logits
        for folder in ("l1w16/stable", "l1w16/final", "l2w16/init")
    )
    assert (child - stable).abs().max() <= 1e-5 * stable.abs().max()
    assert (child - final).abs().max() > 1e-3 * stable.abs().max()
