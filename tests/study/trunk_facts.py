"""What is true of a study of trunks, worked out from its single models' FLOPs, bits per byte and steps alone."""

import math
import statistics
from typing import Any

from study_facts import interval

Record = dict[str, Any]


class TrunkFacts:
    """The finished trunks and baselines of a study, and what follows from them."""

    def __init__(self, study: Record) -> None:
        self.study = study
        self.sizes = {rung["name"]: rung for rung in study["rungs"]}
        self.last = study["rungs"][-1]["name"]
        self.recipes = {recipe["name"]: recipe for recipe in study["recipes"]}
        self.cold = {(group["rung"], group["seed"]): done(group["points"]) for group in study["cold"]}
        self.ends = {
            (recipe["name"], group["rung"], group["seed"]): done(group["points"])
            for recipe in study["recipes"]
            for group in recipe["points"]
        }

    def seeds(self, recipe: str, rung: str) -> list[int]:
        """Seeds of which every baseline and every length of the trunk is finished."""
        settings = self.study["config"]
        own = next(entry for entry in settings["recipes"] if entry["name"] == recipe)
        lengths = own["child_fractions"] or settings["child_fractions"]
        return [
            seed
            for seed in settings["seeds"]
            if len(self.ends.get((recipe, rung, seed), ())) == len(lengths)
            and len(self.cold.get((rung, seed), ())) == len(settings["cold_fractions"])
        ]

    def stages_flops(self, recipe: str, rung: str) -> float:
        """FLOPs of all stages: each trains whole steps of the last model's, up to its share of them."""
        size, total, before = self.sizes[rung], 0.0, 0
        for stage in self.recipes[recipe]["trunk"]:
            until = round(stage["until"] * size["cold_steps"])
            total += (until - before) * (size["cold_tokens"] / size["cold_steps"]) * stage["flops_per_token"]
            before = until
        return total

    def seed(self, recipe: str, rung: str, seed: int, fraction: float | None = None) -> Record:
        """One seed's cost, at its longest or at a share of the budget."""
        points = self.ends[recipe, rung, seed]
        end = points[-1] if fraction is None else next(point for point in points if point["fraction"] == fraction)
        stages = self.stages_flops(recipe, rung)
        worth, beyond = worth_of(self.cold[rung, seed], end["bits_per_byte"])
        return {
            "bits": end["bits_per_byte"],
            "stages": stages,
            "own": end["flops"],
            "worth": worth,
            "extrapolated": beyond,
            "cost": (stages + end["flops"]) / worth,
            "eta": (worth - end["flops"]) / stages,
            "ceiling": worth / stages,
            "saving": 1 - end["flops"] / worth,
        }

    def step(self, recipe: str, rung: str, fraction: float | None = None) -> Record | None:
        """Means and intervals over the seeds; None where none is complete."""
        seeds = self.seeds(recipe, rung)
        if not seeds:
            return None
        found = [self.seed(recipe, rung, seed, fraction) for seed in seeds]
        whole = [baseline(self.cold[rung, seed])["bits_per_byte"] for seed in seeds]
        means = {key: statistics.fmean(one[key] for one in found) for key in ("cost", "eta", "ceiling", "saving")}
        (low, high), (eta_low, eta_high) = interval([s["cost"] for s in found]), interval([s["eta"] for s in found])
        ends = {"low": low, "high": high, "eta_low": eta_low, "eta_high": eta_high}
        bits = statistics.fmean(one["bits"] for one in found)
        return (
            means
            | ends
            | {
                "seeds": len(seeds),
                "seed_names": seeds,
                "costs": [one["cost"] for one in found],
                "extrapolated": sum(one["extrapolated"] for one in found),
                "bits": bits,
                "baseline": statistics.fmean(whole),
                "gap": bits - statistics.fmean(whole),
            }
        )

    def family(self, recipe: str) -> Record:
        """The trunk and its members by decay, and what they cost from scratch; empty where it has no members."""
        decayed = {
            (one["stage"], one["seed"]): one for one in self.recipes[recipe]["members"] if one["kind"] == "decay"
        }
        names = [stage["name"] for stage in self.recipes[recipe]["trunk"]] if decayed else []
        spent, cold, over = [], [], []
        worths: dict[str, list[float]] = {name: [] for name in names}
        for seed in self.seeds(recipe, self.last) if decayed else ():
            last = self.seed(recipe, self.last, seed)
            spent.append(last["stages"] + last["own"] + sum(decayed[name, seed]["flops"] for name in names))
            cold.append(last["worth"])
            over.append(spent[-1] / last["worth"])
            for name in names:
                budget = self.sizes[name]["cold_tokens"] * self.sizes[name]["flops_per_token"]
                worth, _ = worth_of(self.cold[name, seed], decayed[name, seed]["bits_per_byte"])
                worths[name].append(worth / budget)
                cold[-1] += min(worth, budget)
        if not spent:
            return {}
        inherited, all_cold = statistics.fmean(spent), statistics.fmean(cold)
        return {
            "over": statistics.fmean(over),
            "over_interval": interval(over),
            "inherited": inherited,
            "all_cold": all_cold,
            "family_cost": inherited / all_cold,
            "worths": " and ".join(f"{name} {100 * statistics.fmean(some):.0f} %" for name, some in worths.items()),
        }

    def costs_by_sharing(self, recipe: str, rung: str) -> Record:
        """Mean costs over the seeds that every recipe has, and over those that another one lacks; none of all."""
        own, of_all = self.seeds(recipe, rung), [self.seeds(name, rung) for name in self.recipes]
        shared = [seed for seed in own if all(seed in seeds for seeds in of_all if seeds)]
        found: Record = {}
        for names, mean, seeds in (
            ("shared", "of_shared", shared),
            ("lacking", "of_others", [seed for seed in own if seed not in shared]),
        ):
            if seeds:
                costs = [self.seed(recipe, rung, seed)["cost"] for seed in seeds]
                found |= {names: f"seed{'s' * (len(seeds) > 1)} {listed(seeds)}", mean: statistics.fmean(costs)}
        return found

    def choice(self, step: Record) -> Record:
        """On which seeds rates were chosen, and the mean cost of a step over the others."""
        seeds = self.study["config"]["seeds"]
        chosen = self.study["config"].get("learning_rates", {}).get("seeds") or seeds[:1]
        pairs = zip(step["seed_names"], step["costs"], strict=True)
        others = [cost for seed, cost in pairs if seed not in chosen]
        many = len(chosen) > 1
        count = {0: "", 1: "one seed", 2: "two seeds", 3: "three seeds", 4: "four seeds", 5: "five seeds"}
        return {
            "chosen": f"seeds {listed(chosen)}" if many else "the first seed",
            "these": "by their means, and these count" if many else "that seed counts",
            "them": "them" if many else "it",
            "others": count[len(others)],
            "without": statistics.fmean(others) if others else None,
        }

    def rates(self) -> dict[str, dict[float, float | None]]:
        """Bits per byte of every rate to choose from, by side: the mean over seeds; None where training failed."""
        return {
            side: {
                rate: None if any("failed" in point for point in points) else statistics.fmean(bits_of(points))
                for rate, points in by_rate.items()
                if rate in self.to_choose_from and None not in points
            }
            for side, by_rate in self.tried().items()
        }

    @property
    def to_choose_from(self) -> list[float]:
        """The rates that a study chooses from."""
        found: list[float] = self.study["config"].get("learning_rates", {}).get("rates") or []
        return found

    def tried(self) -> dict[str, dict[float, list[Record | None]]]:
        """What came of every rate, by side, in the order of the seeds."""
        tried: dict[str, dict[float, list[Record | None]]] = {}
        for row in self.study["learning_rates"]:
            if row["kind"] == "cold" or row["recipe"]:
                side = f"recipe “{row['recipe']}”" if row["recipe"] else "the baseline"
                tried.setdefault(side, {}).setdefault(row["learning_rate"], []).append(row["point"])
        return tried

    def side(self, side: str) -> Record:
        """What the rates of one side say."""
        tried, choices = self.tried()[side], self.rates()[side]
        finished = {rate: bits for rate, bits in choices.items() if bits is not None}
        best = min(finished, key=finished.__getitem__)
        others = sorted(rate for rate in tried if rate not in self.to_choose_from)
        ends = {min([*choices, *others]): "lowest", max([*choices, *others]): "highest"} if tried else {}
        return {
            "side": side,
            "best": best,
            "rates": ", ".join(f"{rate:g}" for rate in sorted(choices)),
            "failed_at": ", ".join(f"{rate:g}" for rate in sorted(set(choices) - set(finished))),
            "end": f"{side} ({best:g}, the {ends[best]})" if best in ends else None,
            "beside": "; ".join(against(rate, tried[rate][0], tried[best][0]) for rate in others) or None,
        }


def against(rate: float, point: Record | None, best: Record | None) -> str:
    """How a rate does against the best on the same seed."""
    assert point is not None
    assert best is not None
    if "failed" in point:
        return f"at {rate:g} training failed"
    above = point["bits_per_byte"] - best["bits_per_byte"]
    size = abs(above)
    return (
        f"{rate:g} is {size:.{1 - math.floor(math.log10(size))}f} bits per byte {'worse' if above > 0 else 'better'}"
    )


def bits_of(points: list[Record | None]) -> list[float]:
    """Bits per byte of models, all of them finished."""
    return [point["bits_per_byte"] for point in points if point]


def listed(seeds: list[int]) -> str:
    """Seeds as a text has them."""
    *before, last = map(str, seeds)
    return f"{', '.join(before)} and {last}" if before else last


def done(points: list[Record]) -> list[Record]:
    """Finished models, the shortest first."""
    return sorted((point for point in points if "failed" not in point), key=lambda point: point["fraction"])


def baseline(points: list[Record]) -> Record:
    """The baseline of the whole budget."""
    return next(point for point in points if point["fraction"] == 1)


def worth_of(baselines: list[Record], bits: float) -> tuple[float, bool]:
    """The budget from scratch with these bits per byte, and whether it lies beyond the finished ones.

    On the first stretch that comes down to them, in log FLOPs; beyond the ends on the stretch at that end.
    """
    curve = [(math.log(point["flops"]), point["bits_per_byte"]) for point in baselines]
    pairs = list(zip(curve, curve[1:], strict=False))
    inside = [pair for pair in pairs if pair[1][1] <= bits <= pair[0][1]]
    beyond = pairs[0] if bits > curve[0][1] else pairs[-1]
    (x0, y0), (x1, y1) = inside[0] if inside else beyond
    return math.exp(x0 + (bits - y0) / (y1 - y0) * (x1 - x0)), not inside
