"""What is true of a study, worked out from its single models' FLOPs and bits per byte alone."""

import math
import statistics
from typing import Any

Record = dict[str, Any]

T_975 = {2: 12.7062, 3: 4.3027, 4: 3.1824, 5: 2.7764, 6: 2.5706, 7: 2.4469, 8: 2.3646}
"""97.5 % quantile of Student's t, by the number of seeds."""


class StudyFacts:
    """The models of a study, by recipe, rung and seed, and what follows from them."""

    def __init__(self, study: Record) -> None:
        self.study = study
        self.names = [rung["name"] for rung in study["rungs"]]
        self.seeds = study["config"]["seeds"]
        self.recipes = {recipe["name"]: recipe for recipe in study["recipes"]}
        self.cold = {(group["rung"], group["seed"]): group["points"] for group in study["cold"]}
        self.children = {
            (recipe["name"], group["rung"], group["seed"]): sorted(
                group["points"], key=lambda point: point["fraction"]
            )
            for recipe in study["recipes"]
            for group in recipe["points"]
        }

    def baseline(self, rung: str, seed: int) -> Record:
        """The model trained from scratch on its whole budget."""
        return next(point for point in self.cold[rung, seed] if point["fraction"] == 1)

    def lineage(self, recipe: str, rung: str, seed: int) -> float:
        """FLOPs of all that went into the model that a child grew from."""
        place, entry = self.names.index(rung), self.recipes[recipe]
        ancestors = entry["parent_recipe"] or recipe
        total = self.baseline(self.names[0], seed)["flops"]
        for name in self.names[1:place]:
            points = self.children[ancestors, name, seed]
            total += next(point["flops"] for point in points if point["fraction"] == entry["parent_fraction"])
        return float(total)

    def match(self, recipe: str, rung: str, seed: int) -> tuple[float | None, bool]:
        """FLOPs at which a child comes down to its baseline, and whether its smallest budget does already."""
        points, target = self.children[recipe, rung, seed], self.baseline(rung, seed)["bits_per_byte"]
        if points[0]["bits_per_byte"] <= target:
            return float(points[0]["flops"]), True
        for before, after in zip(points, points[1:], strict=False):
            if after["bits_per_byte"] <= target:
                share = (before["bits_per_byte"] - target) / (before["bits_per_byte"] - after["bits_per_byte"])
                return float(before["flops"] * (after["flops"] / before["flops"]) ** share), False
        return None, False

    def step(self, recipe: str, rung: str) -> Record:
        """What is true of one step of one recipe."""
        seeds = [seed for seed in self.seeds if (recipe, rung, seed) in self.children]
        found = {seed: self.match(recipe, rung, seed) for seed in seeds}
        baselines = {seed: self.baseline(rung, seed) for seed in seeds}
        matched = {seed: flops for seed, (flops, _) in found.items() if flops is not None}
        place, complete = self.names.index(rung), len(matched) == len(seeds)
        spared = {seed: baselines[seed]["flops"] - flops for seed, flops in matched.items()}
        etas = [spared[seed] / self.lineage(recipe, rung, seed) for seed in matched]
        savings = [spared[seed] / baselines[seed]["flops"] for seed in matched]
        bound = any(at_smallest for _, at_smallest in found.values())
        ends = [self.children[recipe, rung, seed][-1]["bits_per_byte"] for seed in seeds]
        costs = [(self.lineage(recipe, rung, seed) + matched[seed]) / baselines[seed]["flops"] for seed in matched]
        ceilings = [baselines[seed]["flops"] / self.lineage(recipe, rung, seed) for seed in seeds]
        cost_low, cost_high = interval(costs) if complete else (None, None)
        low, high = interval(etas) if complete else (None, None)
        return {
            "child": rung,
            "seeds": len(seeds),
            "matched": len(matched),
            "bound": bound,
            "eta": statistics.fmean(etas) if complete else None,
            "saving": statistics.fmean(savings) if complete else None,
            "eta_low": low,
            "eta_high": None if bound else high,
            "ceiling": statistics.fmean(ceilings) if complete else None,
            "cost": statistics.fmean(costs) if complete else None,
            "cost_low": None if bound else cost_low,
            "cost_high": cost_high,
            "gap": statistics.fmean(
                end - baselines[seed]["bits_per_byte"] for end, seed in zip(ends, seeds, strict=True)
            ),
            "as_trained": self._as_trained(recipe, rung, seeds) if place + 1 < len(self.names) else None,
        }

    def _as_trained(self, recipe: str, rung: str, seeds: list[int]) -> float:
        fraction = self.recipes[recipe]["parent_fraction"]
        return statistics.fmean(
            at(self.children[recipe, rung, seed], "fraction", fraction) - self.baseline(rung, seed)["bits_per_byte"]
            for seed in seeds
        )

    def family(self, recipe: str) -> Record:
        """What the whole family costs, over its last model alone."""
        last, totals, bound = self.names[-1], [], False
        for seed in self.seeds:
            flops, at_smallest = self.match(recipe, last, seed)
            bound |= at_smallest
            totals.append(None if flops is None else flops + self.lineage(recipe, last, seed))
        alone = self.baseline(last, self.seeds[0])["flops"]
        cold = sum(self.baseline(name, self.seeds[0])["flops"] for name in self.names)
        if None in totals:
            return {"inherited": None, "all_cold": cold}
        inherited, (low, high) = statistics.fmean(totals), interval([total / alone for total in totals])
        ratios = {"over_last": inherited / alone, "over_low": None if bound else low, "over_high": high}
        return ratios | {"inherited": inherited, "all_cold": cold, "family_cost": inherited / cold, "bound": bound}

    def phi(self) -> dict[tuple[str, str, float], tuple[list[float], list[float]]]:
        """Differences to the recipe without Φ, by recipe, rung and budget: at equal FLOPs, and at equal tokens."""
        found = {}
        for recipe in self.study["headline"]["phi_effect"]["recipes"]:
            for key in [key for key in self.children if key[0] == recipe["recipe"]]:
                _, rung, seed = key
                without = self.children[recipe["reference"], rung, seed]
                for point in self.children[key]:
                    flops, tokens = found.setdefault((recipe["recipe"], rung, point["fraction"]), ([], []))
                    flops.append(point["bits_per_byte"] - at(without, "flops", point["flops"]))
                    same = [other for other in without if other["fraction"] == point["fraction"]]
                    tokens += [point["bits_per_byte"] - other["bits_per_byte"] for other in same]
        return found


def interval(values: list[float]) -> tuple[float | None, float | None]:
    """95 % by Student's t; none of a single value."""
    if len(values) == 1:
        return None, None
    half = T_975[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - half, statistics.fmean(values) + half


def at(points: list[Record], key: str, value: float) -> float:
    """Bits per byte of finished models at a budget: on the line through the nearest two over its logarithm."""
    exact = [point["bits_per_byte"] for point in points if point[key] == value]
    if exact or len(points) == 1:
        return float([*exact, points[0]["bits_per_byte"]][0])
    after = next((n for n, point in enumerate(points) if n and point[key] >= value), len(points) - 1)
    one, two = points[after - 1], points[after]
    share = math.log(value / one[key]) / math.log(two[key] / one[key])
    return float(one["bits_per_byte"] + share * (two["bits_per_byte"] - one["bits_per_byte"]))
