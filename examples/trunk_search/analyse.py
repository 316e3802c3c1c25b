"""The table: what the last model of each trunk costs, best rate against best rate, seed by seed.

    python examples/trunk_search/analyse.py [examples/trunk_search/results/h100.json]

A trunk's model is looked up on the curve of the models from scratch of the same seed, finished at several budgets and
each at the rate that is best there in the mean over the seeds. Its own rate is the one that is best in the mean of its
last-model cost, so that both sides have chosen on the seeds that are shown.
"""

import argparse
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from measured import Measured, Model, read
from trunks import Trunk

from hf_progressive.records.equivalent import EquivalentBudget, equivalent_budget
from hf_progressive.records.interval import Interval, mean_interval

COMMITTED = Path(__file__).parent / "results" / "h100.json"


class Finished(NamedTuple):
    """A model from scratch, as `equivalent_budget` reads it."""

    flops: float
    """Over the full budget's."""

    bits_per_byte: float


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The models from scratch of one size, budget and decay."""

    trunk: Trunk

    means: dict[float, dict[float, float]]
    """Bits per byte by fraction and rate, over the seeds."""

    best_rates: dict[float, float]
    """By fraction."""

    curves: dict[int, list[Finished]]
    """By seed, each fraction at its best rate."""

    @property
    def full_budget(self) -> list[float]:
        """Bits per byte at the best rate and the whole budget, a seed each."""
        return [next(point.bits_per_byte for point in curve if round(point.flops, 2) == 1) for curve in
                self.curves.values()]  # fmt: skip

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds at the whole budget, in bits per byte."""
        return statistics.stdev(self.full_budget)

    @property
    def deviation_in_compute(self) -> float:
        """The same as a share of the compute: what it is worth on the curve of the means."""
        mean = statistics.fmean(self.full_budget)
        columns = zip(*self.curves.values(), strict=True)
        curve = [Finished(column[0].flops, statistics.fmean(point.bits_per_byte for point in column)) for column in
                 columns]  # fmt: skip
        ends = [equivalent_budget(curve, mean + sign * self.deviation) for sign in (1, -1)]
        assert ends[0] is not None
        assert ends[1] is not None
        return math.sqrt(ends[1].flops / ends[0].flops) - 1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A trunk's models that were finished at one fraction."""

    trunk: Trunk
    fraction: float

    rate: float
    """The best in the mean of the last-model cost."""

    by_rate: dict[float, float]
    """Mean last-model cost."""

    by_seed: dict[int, float]
    """Last-model cost at the best rate."""

    interval: Interval
    cost: float
    """FLOPs of model and lineage over the full budget from scratch."""

    equivalent: float
    """From-scratch budget of the same bits per byte, over the full one."""

    extrapolated: bool
    """Whether that lies outside the models from scratch for some seed."""

    bits_per_byte: float
    deviation: float | None
    """Of the bits per byte over the seeds."""

    jump: float
    """What all growths together added to the bits per byte."""

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the smallest or the largest that was tried."""
        return len(self.by_rate) > 1 and self.rate in (min(self.by_rate), max(self.by_rate))


Key = tuple[int, float, float]
"""Seed, rate and fraction."""


def averaged(models: Sequence[Model]) -> dict[Key, Model]:
    """Return the models that did not diverge; one that was measured again counts once, by its mean."""
    found: defaultdict[Key, list[Model]] = defaultdict(list)
    for model in models:
        if model.bits_per_byte is not None:
            found[model[:3]].append(model)
    return {
        key: same[0]._replace(bits_per_byte=statistics.fmean(bits_of(model) for model in same))
        for key, same in found.items()
    }


def bits_of(model: Model) -> float:
    assert model.bits_per_byte is not None
    return model.bits_per_byte


def baseline_of(trunk: Trunk, models: Sequence[Model]) -> Baseline:
    """Choose the best rates of models from scratch."""
    known = averaged(models)
    seeds = sorted({model.seed for model in known.values()})
    means: defaultdict[float, dict[float, float]] = defaultdict(dict)
    for fraction, rate in sorted({(model.fraction, model.rate) for model in known.values()}):
        same = [known[seed, rate, fraction] for seed in seeds if (seed, rate, fraction) in known]
        if len(same) == len(seeds):  # a rate that diverged for a seed is none to choose
            means[fraction][rate] = statistics.fmean(bits_of(model) for model in same)
    best = {fraction: min(rates, key=rates.__getitem__) for fraction, rates in means.items()}
    curves = {
        seed: [
            Finished(known[seed, rate, share].cost, bits_of(known[seed, rate, share])) for share, rate in best.items()
        ]
        for seed in seeds
    }
    return Baseline(trunk=trunk, means=dict(means), best_rates=best, curves=curves)


def outcomes_of(trunk: Trunk, models: Sequence[Model], baseline: Baseline) -> list[Outcome]:
    """Return what a trunk's models cost, for each fraction at which some were finished."""
    found = []
    known = averaged(models)
    for fraction in sorted({model.fraction for model in known.values()}):
        budgets: defaultdict[float, dict[int, tuple[Model, EquivalentBudget]]] = defaultdict(dict)
        for model in known.values():
            budget = equivalent_budget(baseline.curves[model.seed], bits_of(model))
            if model.fraction == fraction and budget is not None:
                budgets[model.rate][model.seed] = (model, budget)
        by_rate = {
            rate: statistics.fmean(model.cost / budget.flops for model, budget in seeds.values())
            for rate, seeds in sorted(budgets.items())
        }
        rate = min(by_rate, key=by_rate.__getitem__)
        chosen = dict(sorted(budgets[rate].items()))
        reached = [bits_of(model) for model, _ in chosen.values()]
        by_seed = {seed: model.cost / budget.flops for seed, (model, budget) in chosen.items()}
        jumps = [sum(after - before for before, after in model.growths) for model, _ in chosen.values()]
        found.append(
            Outcome(
                trunk=trunk,
                fraction=fraction,
                rate=rate,
                by_rate=by_rate,
                by_seed=by_seed,
                interval=mean_interval(list(by_seed.values())),
                cost=next(model.cost for model, _ in chosen.values()),
                equivalent=statistics.fmean(budget.flops for _, budget in chosen.values()),
                extrapolated=any(budget.extrapolated for _, budget in chosen.values()),
                bits_per_byte=statistics.fmean(reached),
                deviation=statistics.stdev(reached) if len(reached) > 1 else None,
                jump=statistics.fmean(jumps),
            )
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that the table says."""

    measured: Measured
    baselines: dict[Trunk, Baseline]
    outcomes: dict[Trunk, list[Outcome]]
    """By baseline, the cheapest first."""

    @property
    def repeated(self) -> list[float]:
        """Differences in bits per byte between two measurements of one model."""
        found = []
        for models in self.measured.models.values():
            same: defaultdict[Key, list[float]] = defaultdict(list)
            for model in models:
                same[model[:3]].append(bits_of(model))
            found += [max(values) - min(values) for values in same.values() if len(values) > 1]
        return found


def analyse(measured: Measured) -> Analysis:
    """Compare every trunk with the models from scratch of its last size."""
    baselines = {trunk: baseline_of(trunk, models) for trunk, models in measured.models.items() if trunk.from_scratch}
    outcomes: defaultdict[Trunk, list[Outcome]] = defaultdict(list)
    for trunk, models in measured.models.items():
        if not trunk.from_scratch and (baseline := baselines.get(trunk.baseline)):
            outcomes[trunk.baseline] += outcomes_of(trunk, models, baseline)
    ordered = {key: sorted(found, key=lambda outcome: outcome.interval.mean) for key, found in outcomes.items()}
    return Analysis(measured=measured, baselines=baselines, outcomes=ordered)


def title(trunk: Trunk) -> str:
    """Name a baseline."""
    family = {"llama": "Llama", "gpt2": "GPT-2"}[trunk.family]
    return f"{family}, {trunk.tokens_per_parameter:g} tokens per parameter, decay {short(trunk.decay_fraction, 1)}"


def short(value: float, digits: int) -> str:
    """Write a figure as the log does."""
    return f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"


def baseline_lines(baseline: Baseline) -> list[str]:
    """Return the table of the models from scratch; an edge is the smallest or the largest rate that was tried."""
    lines = [
        f"## {title(baseline.trunk)}: from scratch, mean bits per byte of {len(baseline.curves)} seeds",
        "share of the budget  " + "  ".join(f"{fraction:7g}" for fraction in baseline.means),
    ]
    tried = sorted({rate for rates in baseline.means.values() for rate in rates})
    for rate in tried:
        cells = [f"{rates[rate]:7.4f}" if rate in rates else " " * 7 for rates in baseline.means.values()]
        lines.append(f"  rate {rate:<12g}  " + "  ".join(cells))
    rates = baseline.best_rates.values()
    edge = "  (edge)" if list(rates)[-1] in (min(tried), max(tried)) else ""
    lines.append("  best rate          " + "  ".join(f"{rate:7g}" for rate in rates) + edge)
    lines.append(
        f"  standard deviation over seeds at 1: {baseline.deviation:.4f} bits per byte,"
        f" {baseline.deviation_in_compute:.0%} of the compute"
    )
    return lines


def outcome_line(outcome: Outcome) -> str:
    """Return a trunk's line."""
    interval = outcome.interval
    ends = "" if interval.low is None or interval.high is None else f" ({interval.low:.2f} to {interval.high:.2f})"
    seeds = " ".join(f"{cost:.2f}" for cost in outcome.by_seed.values())
    rates = " ".join(f"{rate:g}:{cost:.2f}" for rate, cost in outcome.by_rate.items())
    deviation = "" if outcome.deviation is None else f" ±{outcome.deviation:.4f}"
    return (
        f"{interval.mean:.2f}{ends}  {outcome.trunk.caption}"
        + ("" if outcome.fraction == 1 else f"; finished at {outcome.fraction:g}".replace("0.", "."))
        + f" | seeds {seeds} | rates {rates}{' (edge)' if outcome.at_edge else ''}"
        + f" | cost {outcome.cost:.3f}, equivalent {outcome.equivalent:.2f}"
        + f"{' (extrapolated)' if outcome.extrapolated else ''}, {outcome.bits_per_byte:.4f}{deviation} bits per byte,"
        + f" growths {outcome.jump:+.3f}"
    )


def log_rows(analysis: Analysis) -> list[str]:
    """Return every trunk's row of the log's tables."""
    rows = []
    for baseline, outcomes in analysis.outcomes.items():
        rows += [f"{title(baseline)}:"]
        for outcome in outcomes:
            interval, caption = outcome.interval, outcome.trunk.caption
            finished = "" if outcome.fraction == 1 else f"; finished at {outcome.fraction:g}".replace("0.", ".")
            ends = (
                ""
                if interval.low is None or interval.high is None
                else (f"{short(interval.low, 2)} to {short(interval.high, 2)}, {len(outcome.by_seed)} seeds")
            )
            deviation = "" if outcome.deviation is None else f" ± {short(outcome.deviation, 4)}"
            rows.append(
                f"| {caption}{finished} | {short(interval.mean, 2)} | {ends} | {1000 * outcome.rate:g}e-3 |"
                f" {short(outcome.cost, 2)} | {outcome.bits_per_byte:.4f}{deviation} |"
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Print what the last model of each trunk costs.")
    parser.add_argument("measured", type=Path, nargs="?", default=COMMITTED)
    parser.add_argument("--log", action="store_true", help="print the rows of docs/LOG.md instead")
    options = parser.parse_args()
    analysis = analyse(read(options.measured))
    if options.log:
        print(*log_rows(analysis), sep="\n")
        return
    for baseline, found in analysis.baselines.items():
        print(*baseline_lines(found), sep="\n")
        print("  last-model cost, mean and 95 % interval over the seeds, both sides at their best rate:")
        print(*(f"  {outcome_line(outcome)}" for outcome in analysis.outcomes.get(baseline, [])), "", sep="\n")
    if analysis.repeated:
        print(
            f"{len(analysis.repeated)} models were measured twice; their bits per byte differ by"
            f" {statistics.fmean(analysis.repeated):.4f} in the mean, by {max(analysis.repeated):.4f} at the most"
        )


if __name__ == "__main__":
    main()
