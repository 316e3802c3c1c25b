"""README.md and docs/evidence.md say of ways to grow, families and Φ what the committed studies say."""

import json
import re
from statistics import fmean

import pytest
from documents.told import EVIDENCE, NUMBERS, README, ROOT, cells, percent, short, with_interval

from hf_progressive.planning.law import fit
from hf_progressive.planning.observations import observed
from hf_progressive.records.interval import mean_interval
from hf_progressive.records.study import read_study

STUDIES = ROOT / "examples" / "studies"
PROSE = " ".join(EVIDENCE.read_text(encoding="utf-8").split())


@pytest.mark.parametrize(
    ("row", "name", "recipe"),
    [
        ("wider and deeper at once, Llama, .47 M", "trunk", "stacked and widened"),
        ("wider and deeper at once, Llama, .13 M", "trunk_w32", "stacked and widened"),
        ("the same, begun with 2 layers", "trunk_w32", "stacked twice and widened"),
        ("exact growth, Llama, .47 M", "trunk", "exact"),
        ("exact growth, GPT-2, .47 M", "trunk_gpt2", "exact"),
    ],
)
def test_the_readme_has_what_growing_in_other_ways_costs(row: str, name: str, recipe: str) -> None:
    record = read_study(STUDIES / name)
    cost = next(entry for entry in record.recipes if entry.name == recipe).rungs[0].last_model_cost
    _, told = cells(README, f"{row} |")
    assert told.partition(";")[0] == with_interval(cost.value, cost.low, cost.high, cost.seeds)


def test_the_readme_has_what_families_cost_and_what_phi_gains() -> None:
    chain, trunk = (read_study(STUDIES / name) for name in ("books", "trunk_members"))
    family = chain.headline.family
    ends = f"({short(family.over_last_alone_low)} to {short(family.over_last_alone_high)})"
    _, told = cells(README, "a chain of four GPT-2 models, .3 to .5 M, three seeds |")
    assert told == (
        f"all {NUMBERS[len(chain.rungs)]} for {percent(family.inherited / family.cold)} of all four from scratch;"
        f" the last alone {short(family.over_last_alone)} {ends}"
    )
    recipe = next(recipe for recipe in trunk.recipes if recipe.name == "stacked, longer decay")
    sizes = [short(rung.parameters / 1e6) for rung in trunk.rungs]
    first, second = (
        short(fmean(member.worth for member in recipe.members if (member.stage, member.kind) == (stage.name, "decay")))
        for stage in recipe.trunk
    )
    family = recipe.family
    ends = f"({short(family.over_last_alone_low)} to {short(family.over_last_alone_high)})"
    start = f"a whole family on one run: Llama of {sizes[0]}, {sizes[1]} and {sizes[2]} M, three seeds |"
    assert cells(README, start)[1:] == [
        f"all three for {short(family.over_last_alone)} {ends} of the last alone,"
        f" {percent(family.inherited / family.cold)} of all three from scratch; the smaller ones are worth {first} and"
        f" {second} of their own budgets"
    ]
    effects = [point for entry in chain.headline.phi_effect.recipes for rung in entry.rungs for point in rung.points]
    at_best = json.loads((STUDIES / "phi_forms" / "compared.json").read_text())["compared"]
    assert not [point for point in effects if point.high < 0]
    assert not [row for row in at_best if row["high"] < 0]
    _, told = cells(README, "Φ between the models of a family, same texts |")
    assert told.startswith(
        f"no gain in {len(effects)} comparisons at equal FLOPs (GPT-2), nor in {len(at_best)} at the best rates"
    )


@pytest.mark.parametrize(
    ("name", "recipes"),
    [
        ("trunk", ["exact", "stacked and widened"]),
        ("trunk_gpt2", ["exact"]),
        ("trunk_w32", ["stacked, shared", "stacked, moments grown", "stacked twice and widened"]),
        ("trunk_l16w32", ["stacked, moments grown", "stacked, longer thin"]),
    ],
)
def test_the_evidence_has_how_far_from_stacking_other_trunks_end(name: str, recipes: list[str]) -> None:
    record = read_study(STUDIES / name)
    costs = {recipe.name: recipe.rungs[0].last_model_cost for recipe in record.recipes}
    bits = {name: {seed.seed: seed.bits_per_byte for seed in cost.by_seed} for name, cost in costs.items() if cost}
    for recipe in recipes:
        apart = mean_interval([reached - bits["stacked"][seed] for seed, reached in bits[recipe].items()])
        mean, low, high = (re.escape(short(value, 4)) for value in (apart.mean, apart.low, apart.high))
        assert re.search(rf"[ (]{mean}[^\d)]*{low} to {high}[),]", PROSE), recipe


def test_the_evidence_has_how_far_models_under_muon_and_gpt2_s_trunks_end_from_others() -> None:
    names = ("trunk_w32_muon", "trunk_w32", "trunk_gpt2_l16w32_20")
    records = [read_study(STUDIES / name) for name in names]
    muon, adamw, gpt2 = (
        {
            entry.seed: {round(point.fraction, 2): point.bits_per_byte for point in entry.points}
            for entry in record.cold
        }
        for record in records
    )
    trunk, _, gpt2_trunk = (
        {seed.seed: seed.bits_per_byte for seed in record.headline.last_model_cost.by_seed} for record in records
    )

    def told(differences: list[float], than: str) -> str:
        apart = mean_interval(differences)
        mean, low, high = (short(value, 4) for value in (apart.mean, apart.low, apart.high))
        return f"{mean} {than} ({low} to {high})"

    assert told([adamw[seed][1] - muon[seed][1] for seed in muon], "below AdamW on the same seeds") in PROSE
    assert told([muon[seed][0.7] - adamw[seed][1] for seed in muon], "of AdamW's whole") in PROSE
    assert told([adamw[seed][1] - trunk[seed] for seed in muon], "below AdamW's full budgets") in PROSE
    assert told([gpt2_trunk[seed] - gpt2[seed][1] for seed in gpt2], "above their baselines") in PROSE


def test_the_evidence_has_the_law_of_stacking_on_llama() -> None:
    names = ("trunk", "trunk_w24", "trunk_w32", "trunk_w32_20", "trunk_l16w32", "trunk_l16w32_20", "trunk_l16w64")
    runs = observed(read_study(STUDIES / name) for name in names)
    law = fit(runs)
    held = law.held_out()
    assert law.doubtful == ["parameters"]
    assert (
        f"Fitted to the {NUMBERS[len(names)]} Llama records of stacking ({len(runs)} runs), its exponent of size"
        " cannot be told from 0. Those of tokens and of the growth factor can:"
        f" {short(law.expected['tokens_per_parameter'])} and {short(law.expected['growth'])}."
    ) in PROSE
    assert (
        f"Fitted without the largest size, {short(held.parameters / 1e6)} M, the law expects"
        f" {short(held.predicted.value)} there ({short(held.predicted.low)} to {short(held.predicted.high)}), and"
        f" {short(held.measured)} was measured."
    ) in PROSE


def test_the_evidence_has_what_members_by_an_average_are_worth() -> None:
    recipes = read_study(STUDIES / "trunk_members").recipes
    ranges = []
    for stage in recipes[0].trunk:
        members = [[item for item in recipe.members if item.kind == "average"] for recipe in recipes]
        worths = sorted(fmean(item.worth for item in items if item.stage == stage.name) for items in members)
        ranges.append(" to ".join(map(short, worths)))
    cost = recipes[0].rungs[0].last_model_cost
    assert f"worth less: {ranges[0]} of 2 layers, {ranges[1]} of 4. The last model costs {short(cost.value)}" in PROSE
    assert f"({short(cost.low)} to {short(cost.high)}) here;" in PROSE


def test_the_evidence_has_what_a_chain_of_llama_models_saves() -> None:
    headline = read_study(STUDIES / "books_llama").headline
    etas = [f"{short(rung.eta)} ({short(rung.eta_low)} to {short(rung.eta_high)})" for rung in headline.rungs]
    family = headline.family
    ends = f"({short(family.over_last_alone_low)} to {short(family.over_last_alone_high)})"
    assert (
        f"η is {' and '.join(etas)}, and the family of three costs {short(family.over_last_alone)} times its last"
        f" model alone {ends}, {percent(family.inherited / family.cold)} of all three cold."
    ) in PROSE
