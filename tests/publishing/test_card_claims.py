"""Every figure on a model card, against the records: ladders of one to five rungs, own and taken over."""

from pathlib import Path

import pytest
from claims import SCALES, Claim, cell_fault, faults, take_apart
from family_facts import rung_facts
from family_records import ORIGINS, Record, family, write_family

from hf_progressive.publishing.card import model_card
from hf_progressive.publishing.lineage import Lineage

PHI = {"ewc_lambda": 0.25, "gamma": 0.001, "schedule": "linear", "until": 0.5}
CASES = {
    **{f"{length} rungs": family(length, phi=PHI) for length in range(1, 6)},
    **{origin: family(4, origin=origin) for origin in ORIGINS[1:]},
    **{f"{origin}, one grown": family(2, origin=origin) for origin in ORIGINS[1:]},
    "trunk": family(4, branches=True),
    "not matched": family(3, unmatched=(1,)),
    "no baseline": family(3, without_baseline=(2,)),
    "dearer than its baseline": family(3, dearer=True),
    "Fisher only, late": family(2, phi={**PHI, "gamma": 0.0, "until": 1.5, "schedule": "cosine"}),
    "data repeat": family(3, repeats={1: 40_960, 2: 0}),
}

A_MODEL = "A GPT-2 language model of {parameters} parameters, rung {ordinal} of {rungs} of the ladder sums"
UNKNOWN = "; what went into the first of them is not known"
BASELINE = (
    "The same architecture, trained from scratch on its full budget ({cold}), ended at {cold_bits} bits per byte on"
    " the same validation documents; this model ended at {bits} with {spent} of its own."
)
LOSS = "While training, the loss carried "
EWC = (
    "λ = {ewc_lambda} on the squared distance from the grown weights, weighted by the parent's Fisher information"
    " (empirical, from {fisher_sequences} sequences)"
)
GAMMA = (
    "γ = {gamma} on the squared distance outside the parent's output subspace (from weights, {energy} of the energy)"
)
ON_THE_TRUNK = (
    "{tokens} tokens, {tokens_per_parameter} per parameter of the budget, {trunk_tokens} of them on the trunk, and"
    " finished "
)
OFF_IT = "on a branch off the trunk, over whose {decay_steps} steps the rate fell"
FROM_SCRATCH = "; training it from scratch would be planned with {cold_tokens}."
READ = "The model read {blocks} blocks of {block_tokens} tokens of {corpus_blocks}, from block {first_block} on."


def is_of_a_trunk(facts: dict[str, float]) -> bool:
    return "trunk_tokens" in facts


def on_a_branch(facts: dict[str, float]) -> bool:
    return is_of_a_trunk(facts) and "branch" in facts


CLAIMS = [
    Claim(A_MODEL + ": the first, trained from scratch.", lambda f: not f["is_grown"] and "origin" not in f),
    Claim(A_MODEL + ": the first, taken from {origin:s} at CODE and not trained further.", lambda f: "origin" in f),
    Claim(A_MODEL + ".", lambda f: f["is_grown"]),
    Claim("Model: GPT-2, {layers} layers of width {width}, context {context}"),
    Claim("Parameters: {parameters}, of which {other_parameters} outside the embeddings"),
    Claim("Started from: the parent's function: logits up to {logits} differed by {logit_change} at most"),
    Claim("Bits per byte: {bits} on validation documents", lambda f: not f["has_baseline"]),
    Claim("Bits per byte: {bits} on validation documents; its baseline, trained from scratch: {cold_bits}"),
    Claim(
        "FLOPs of its own: {train}", lambda f: not f.keys() & {"origin", "branch"} and not f["fisher"] + f["subspace"]
    ),
    Claim("FLOPs of its own: {train} ({branch@unit} of it on a branch that no other model inherits)"),
    Claim("Finished: " + OFF_IT, on_a_branch),
    Claim("FLOPs inherited: {lineage}, spent on the trunk before it", is_of_a_trunk),
    Claim(
        "All that had gone into the trunk before it was {lineage}; the saving is {eta} of that: the transfer"
        " efficiency η.",
        is_of_a_trunk,
    ),
    Claim(ON_THE_TRUNK + OFF_IT + ".", lambda f: on_a_branch(f) and not f["is_grown"]),
    Claim(ON_THE_TRUNK + OFF_IT + FROM_SCRATCH, on_a_branch),
    Claim(ON_THE_TRUNK + "by the trunk's own decay" + FROM_SCRATCH, lambda f: is_of_a_trunk(f) and "branch" not in f),
    Claim(
        "FLOPs of its own: {train}, and {fisher@unit} for its parent's Fisher information, and {subspace@unit} for its"
        " parent's subspace"
    ),
    Claim("FLOPs that went into it: {origin_flops}, its ancestors' included", lambda f: f["is_known"]),
    Claim("FLOPs that went into it: {origin_flops}, its ancestors' included" + UNKNOWN, lambda f: not f["is_known"]),
    Claim("FLOPs inherited: {lineage}, spent on its ancestors", lambda f: f["is_known"]),
    Claim("FLOPs inherited: {lineage}, spent on its ancestors" + UNKNOWN, lambda f: not f["is_known"]),
    Claim("FLOPs of its baseline: {cold}", lambda f: f["has_baseline"]),
    Claim("FLOPs to match: {match}, {saving} saved, transfer efficiency η = {eta} of {ceiling} at most"),
    Claim("Last-model cost: with all that it inherits, it costs {last_model_cost} times what its baseline does"),
    Claim(
        "Up to the match, it and all that it inherits took {grown}, {last_model_cost} times what the baseline did: the"
        " last-model cost, for whoever wants this model alone."
    ),
    Claim("FLOPs to match: {match}, {saving} saved", lambda f: f["eta"] is None),
    Claim("FLOPs to match: not matched", lambda f: f["has_baseline"] and f["match"] is None),
    Claim("Grown from {parent:s} ({parent_parameters} parameters, method CODE, seed {seed})."),
    Claim(
        "Before its first step it computed the same function: on {sequences} sequences of {check_length} random tokens"
        " in float32, the largest difference of two logits was {logit_change}, at a scale of {logits}, and the"
        " Kullback-Leibler divergence was {kl} nat."
    ),
    Claim("{tokens} tokens, {tokens_per_parameter} per parameter of the budget.", lambda f: not f["is_grown"]),
    Claim(
        "{tokens} tokens, {tokens_per_parameter} per parameter of the budget; training it from scratch would be"
        " planned with {cold_tokens}."
    ),
    Claim("Made with {versions:s}."),
    Claim("Not trained by this ladder: it had read {tokens} tokens.", lambda f: "origin" in f),
    Claim(BASELINE),
    Claim("It did not reach the baseline; {gap} bits per byte were missing.", lambda f: f["match"] is None),
    Claim("It reached the baseline's figure after {match}, {saving} less.", lambda f: f["eta"] is None),
    Claim("It reached the baseline's figure after {match}, {saving} less."),
    Claim("It reached the baseline's figure after {match}, {extra} more."),
    Claim(
        "All that had gone into its parent, ancestors included, was {lineage}; the saving is {eta} of that: the"
        " transfer efficiency η.",
        lambda f: f["is_known"],
    ),
    Claim(LOSS + EWC + " and " + GAMMA + "."),
    Claim(LOSS + EWC + ".", lambda f: f["gamma"] == 0),
    Claim("Both fell linearly to nothing over the first {until} of the steps."),
    Claim("It fell along a cosine as if to nothing at {until} of the steps.", lambda f: f["until"] > 1),
    Claim(
        "Its gradient's norm was up to {most_ratio} times the loss's at a logged step, {last_ratio} times at the last."
    ),
    Claim(READ),
    Claim("From its token {repeats} on they had been read before, by it or by an ancestor."),
    Claim("From its first token on they had been read before, by it or by an ancestor.", lambda f: f["repeats"] == 0),
    Claim(
        "None of them had been read by it or by an ancestor before.",
        lambda f: f["repeats"] is None and f["is_known"],
    ),
    Claim(
        "None of them had been read here before; what its first ancestor had read is not known.",
        lambda f: f["repeats"] is None and not f["is_known"],
    ),
    Claim("{one} {unit_name:s} is {unit_size:s} floating-point operations."),
    Claim(
        "No baseline of this rung was trained, so nothing is known about what inheritance saved.",
        lambda f: not f["has_baseline"],
    ),
]
FAMILY = {
    "parameters": "parameters",
    "tokens": "tokens",
    "bits per byte": "bits",
    "baseline's": "cold_bits",
    "own": "spent",
    "cold": "baseline_flops",
    "to match": "match",
    "saved": "saving",
    "η": "eta",
    "last-model cost": "last_model_cost",
}
UNITS = [{"one": 1, "unit_name": f"{name}FLOP", "unit_size": size} for name, size in (("G", "10⁹"), ("T", "10¹²"))]


def card_of(run: Path, name: str) -> str:
    lineage = Lineage.read(run / name / "final", f"org/{name}")
    return str(model_card(lineage, tag="rung-0123456789ab", files=["config.json"]).content)


def unit_size(facts: dict[str, float]) -> float:
    largest = max(facts["cold"] or 0.0, facts["spent"])
    return max(scale for scale in SCALES.values() if scale <= largest) if largest else 1.0


@pytest.mark.parametrize("case", CASES)
def test_every_figure_on_a_card_is_what_the_records_say(case: str, tmp_path: Path) -> None:
    records = CASES[case]
    run = write_family(tmp_path / "run", records)
    rungs = [rung_facts(records, place) for place in range(len(records))]
    wrong: list[str] = []
    for record, facts in zip(records, rungs, strict=True):
        document = take_apart(card_of(run, record["name"]))
        overview, *others = document.tables
        sentences = document.sentences + [f"{label}: {text}" for label, text in overview]
        wrong += faults(sentences, (CLAIMS, [{**facts, "unit": unit_size(facts), **unit} for unit in UNITS]))
        assert len(others) == (len(records) > 1)
        for table in others:
            wrong += family_faults(table, records, rungs)
    assert wrong == []


def family_faults(table: list[list[str]], records: list[Record], rungs: list[dict[str, float]]) -> list[str]:
    """Compare the table of the family cell by cell."""
    (_, *titles), *rows = table
    assert [row[0] for row in rows] == [record["name"] for record in records]
    found = []
    for (_, *cells), facts in zip(rows, rungs, strict=True):
        facts = facts | {"baseline_flops": facts["cold"] if facts["has_baseline"] else None}
        in_part = "origin" in facts and not facts["is_known"]
        for title, cell in zip(titles, cells, strict=True):
            unit = next((word for word in title.split() if word.endswith("FLOP")), "")
            name = FAMILY[" ".join(word for word in title.split() if word != unit)]
            true = None if name == "spent" and in_part and not facts["spent"] else facts.get(name)
            scale = SCALES[unit.removesuffix("FLOP")] if unit else 1.0
            fault = cell_fault(cell, true, scale, bound=name == "spent" and in_part)
            found += [f"{facts['name']}, {title}: {fault}"] if fault else []
    return found


def test_a_new_sentence_or_another_figure_is_noticed(tmp_path: Path) -> None:
    records = CASES["3 rungs"]
    text = card_of(write_family(tmp_path / "run", records), records[2]["name"])
    facts = rung_facts(records, 2) | {"unit": unit_size(rung_facts(records, 2))} | UNITS[1]
    sentences = take_apart(text).sentences
    assert list(faults(sentences, (CLAIMS, [facts]))) == []
    assert list(faults([*sentences, "It is 3 times as good."], (CLAIMS, [facts]))) != []
    said = next(sentence for sentence in sentences if "the transfer efficiency" in sentence)
    assert list(faults([said], (CLAIMS, [{**facts, "eta": facts["eta"] + 0.011}]))) != []
    assert list(faults([said], (CLAIMS, [{**facts, "lineage": 1.01 * facts["lineage"]}]))) != []


@pytest.mark.parametrize(("model_type", "begins"), [("olmo2", "An OLMo 2"), ("opt", "An OPT"), ("llama", "A Llama")])
def test_a_card_begins_with_the_article_of_its_family(model_type: str, begins: str, tmp_path: Path) -> None:
    records = family(1)
    records[0]["config"]["model_type"] = model_type
    run = write_family(tmp_path / "run", records)
    assert f"\n{begins} language model of " in card_of(run, records[0]["name"])
