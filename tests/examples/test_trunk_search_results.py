"""What the search measured is what the log and the page of evidence say, and what plain interpolation gives."""

import json
import math
import re
from pathlib import Path

import analyse
import measured
import numpy as np
import pytest
from documents.told import EVIDENCE, README, cells, with_interval

LOG = Path(__file__).parents[2] / "docs" / "LOG.md"
DEEPER = "2×64 until .3, 4×64 until .6, 8×64"
STACKED, EXACT, WIDER = f"{DEEPER}; depth stack", f"{DEEPER}; moments grown; rewarm new", "8×48 until .4, 8×64"
BOTH = "4×48 until .5, 8×64; width scaled; moments grown; rewarm new; new_scale 0.5"


@pytest.fixture(scope="module")
def analysis():
    return analyse.analyse(measured.read(analyse.COMMITTED))


def test_the_stacked_trunk_costs_what_plain_interpolation_says(analysis):
    record = json.loads(analyse.COMMITTED.read_text(encoding="utf-8"))
    usual = {"family": "llama", "tokens_per_parameter": 12.0, "decay_fraction": 0.4}
    groups = [group for group in record["groups"] if usual.items() <= group["trunk"].items()]
    [scratch] = [group["models"] for group in groups if len(group["trunk"]["stages"]) == 1]
    [stacked] = [
        group["models"]
        for group in groups
        if group["trunk"]["depth"] == "stack" and group["trunk"]["moments"] == "fresh"
    ]
    seeds, rates = sorted({row[0] for row in scratch}), sorted({row[1] for row in scratch})
    fractions = sorted({row[2] for row in scratch})
    bits = {tuple(row[:3]): row[3] for row in scratch}
    best = [min(rates, key=lambda rate: sum(bits[seed, rate, share] for seed in seeds)) for share in fractions]
    costs = {rate: [] for rate in {row[1] for row in stacked}}
    for seed, rate, _, reached, cost, *_ in stacked:
        curve = [bits[seed, chosen, share] for chosen, share in zip(best, fractions, strict=True)]
        costs[rate].append(cost / math.exp(np.interp(-reached, [-value for value in curve], np.log(fractions))))
    expected = min(np.mean(values) for values in costs.values())
    [outcome] = [
        outcome
        for outcomes in analysis.outcomes.values()
        for outcome in outcomes
        if outcome.trunk.caption.endswith("depth stack")
    ]
    assert outcome.interval.mean == pytest.approx(expected, abs=1e-3)
    assert analyse.short(outcome.interval.mean, 2) == ".69"


@pytest.mark.parametrize(
    ("page", "row", "family", "tokens", "caption"),
    [
        (README, "Llama, 8 layers, .47 M |", "llama", 12, STACKED),
        (README, "exact growth, Llama, .47 M |", "llama", 12, EXACT),
        (README, "exact growth, GPT-2, .47 M |", "gpt2", 12, EXACT),
        (README, "width alone, Llama, .47 M ² |", "llama", 12, WIDER),
        (EVIDENCE, "Llama, layers stacked | 12 |", "llama", 12, STACKED),
        (EVIDENCE, "Llama, exact growth, Adam's moments grown | 12 |", "llama", 12, EXACT),
        (EVIDENCE, "Llama, exact growth, moments grown | 20 |", "llama", 20, EXACT),
        (EVIDENCE, "GPT-2, exact growth, moments grown | 12 |", "gpt2", 12, EXACT),
        (EVIDENCE, "GPT-2, exact growth, moments grown | 20 |", "gpt2", 20, EXACT),
        (EVIDENCE, "Llama, 4×48 until .5, then 8×64, new entries at half scale | 12 |", "llama", 12, BOTH),
        (EVIDENCE, "Llama, 8×48 until .4, then 8×64: width alone, exact | 12 |", "llama", 12, WIDER),
    ],
)
def test_readme_and_evidence_have_what_the_search_found(analysis, page, row, family, tokens, caption):
    [outcome] = [
        outcome
        for baseline, outcomes in analysis.outcomes.items()
        for outcome in outcomes
        if (baseline.family, baseline.tokens_per_parameter, baseline.decay_fraction) == (family, tokens, 0.4)
        and (outcome.trunk.caption, outcome.fraction) == (caption, 1)
    ]
    expected = with_interval(outcome.interval.mean, outcome.interval.low, outcome.interval.high, len(outcome.by_seed))
    if page is README:
        assert cells(README, row)[1].rpartition("²: ")[2].startswith(expected)
    else:
        mean, _, ends = expected.partition(" (")
        assert cells(EVIDENCE, row)[2:] == [mean, ends.partition(",")[0]]
        assert len(outcome.by_seed) == (3 if caption == WIDER else 4)  # as the paragraph above the table says


def log_entry(question):
    return LOG.read_text(encoding="utf-8").partition(question)[2].partition("\n## ")[0]


def tables_of(entry, analysis):
    """The rows of an entry's tables under their titles, of which there are those of the analysis."""
    titles = [row for row in analyse.log_rows(analysis) if not row.startswith("|")]
    found, title = {row: [] for row in titles}, titles[0]
    for line in entry.splitlines():
        title = line if line in found else title
        if re.match(r"\| \d", line):
            found[title].append(line)
    return {key: sorted(lines) for key, lines in found.items()}


def log_tables(analysis):
    expected, title = {}, ""
    for row in analyse.log_rows(analysis):
        if row.startswith("|"):
            expected[title].append(row)
        else:
            expected[title := row] = []
    return {key: sorted(lines) for key, lines in expected.items()}


def test_log_and_evidence_say_what_two_million_parameters_say():
    analysis = analyse.analyse(measured.read(analyse.COMMITTED.with_name("h200.json")))
    entry = log_entry("Does stacking into sixteen layers save at two million parameters?")
    assert tables_of(entry, analysis) == log_tables(analysis)
    assert sum(map(len, analysis.measured.models.values())) == 84
    evidence = EVIDENCE.read_text(encoding="utf-8")
    for baseline, [outcome] in analysis.outcomes.items():
        low, high = outcome.interval.low, outcome.interval.high
        scratch = np.mean(analysis.baselines[baseline].full_budget)
        row = (
            f", {baseline.architecture().parameters / 1e6:.2f} M parameters | {baseline.tokens_per_parameter:g} |"
            f" {analyse.short(outcome.interval.mean, 2)} |"
            f" {analyse.short(low, 2)} to {analyse.short(high, 2)}, {len(outcome.by_seed)} seeds |"
            f" {outcome.bits_per_byte:.4f} | {scratch:.4f} |"
        )
        assert row in evidence
    llama, gpt2 = (outcome for [outcome] in analysis.outcomes.values())
    for start, column, outcome in (("Llama, 16 layers, 1.9 M", 1, llama), ("GPT-2, 16 layers, 1.9 M", 2, gpt2)):
        interval = outcome.interval
        expected = with_interval(interval.mean, interval.low, interval.high, len(outcome.by_seed))
        assert cells(README, start)[column].startswith(expected)
    text = " ".join(entry.split())
    assert f"cost GPT-2 {analyse.short(gpt2.jump, 2)} bits per byte, Llama {analyse.short(llama.jump, 2)}." in text
    assert f"its trunk costs {analyse.short(llama.by_rate[5e-3], 2)}." in text
    assert f"{analyse.short(gpt2.by_rate[5e-3], 2)} at 5e-3 and {gpt2.by_rate[3e-3]:.2f} at 3e-3." in text
    assert gpt2.extrapolated
    assert not llama.extrapolated
    seeds = sorted(gpt2.by_seed.values())
    assert f"from {analyse.short(seeds[0], 2)} to {seeds[-1]:.2f} over the seeds" in " ".join(evidence.split())


def test_the_log_says_what_the_results_say(analysis):
    entry = log_entry("What does a trunk save")
    assert tables_of(entry, analysis) == log_tables(analysis)
    assert sum(map(len, analysis.measured.models.values())) == 850
    usual, *others = analysis.baselines.values()
    [stacked] = [
        outcome for outcome in analysis.outcomes[usual.trunk] if outcome.trunk.caption.endswith("depth stack")
    ]
    text = " ".join(entry.split())
    assert f"deviation of {analyse.short(usual.deviation, 4)} bits per byte over the seeds, which is" in text
    assert f"{usual.deviation_in_compute:.0%} of their compute".replace("%", " %") in text
    assert f"from {min(usual.full_budget):.4f} to {max(usual.full_budget):.4f}" in text
    first, second, third, last = (analyse.short(cost, 2) for cost in stacked.by_seed.values())
    assert f"costs {first}, {second}, {third} and {last} for the four seeds" in text
    gpt2, short, longer, gpt2_longer = (f"{other.deviation_in_compute:.0%}".replace("%", " %") for other in others)
    assert f"{gpt2} and {gpt2_longer} for GPT-2 at 12 and 20 tokens, {longer} for Llama at 20, {short} with" in text
    mean, most = (analyse.short(value, 4) for value in (np.mean(analysis.repeated), max(analysis.repeated)))
    assert f"differ by {mean} in the mean and {most} at the most" in text
