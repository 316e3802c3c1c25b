"""What a ladder costs on accelerators: hours, dollars, memory and disk, cold and inherited.

Three prices are kept apart: every model from nothing, every model inherited, and the last model alone. What
inheritance costs is given twice, where it is known: as the configuration trains it (`inherited_fraction` of every cold
budget), and as a measured transfer efficiency η says it takes to match the cold twins.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_progressive import strict_yaml
from hf_progressive.arm import micro_batches
from hf_progressive.config import LadderConfig
from hf_progressive.ladder_plan import LadderPlan, RungPlan, aligned
from hf_progressive.memory import activation_bytes, disk_bytes, training_bytes

_USABLE_MEMORY = 0.9


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of accelerator."""

    name: str
    """The name."""

    peak_flops: float
    """Dense bfloat16 matrix FLOPs per second, by its data sheet."""

    memory_gb: float
    """Memory, in 1e9 bytes."""

    source: str
    """Where the figures are from."""


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="a100", peak_flops=312e12, memory_gb=80, source="NVIDIA A100 80GB SXM data sheet, 2022"),
        Gpu(name="b200", peak_flops=2250e12, memory_gb=180, source="NVIDIA HGX B200 data sheet, 2025"),
        Gpu(name="h100", peak_flops=989.4e12, memory_gb=80, source="NVIDIA H100 SXM data sheet, 2023"),
        Gpu(name="h200", peak_flops=989.4e12, memory_gb=141, source="NVIDIA H200 SXM data sheet, 2024"),
        Gpu(name="l40s", peak_flops=362e12, memory_gb=48, source="NVIDIA L40S data sheet, 2023"),
        Gpu(name="mi300x", peak_flops=1307.4e12, memory_gb=192, source="AMD Instinct MI300X data sheet, 2023"),
        Gpu(name="rtx4090", peak_flops=165.2e12, memory_gb=24, source="NVIDIA Ada GPU architecture white paper, 2022"),
    )
}
"""Accelerators by name; the figures are the vendors', without sparsity."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a ladder runs on."""

    gpu: Gpu = GPUS["h100"]
    """The kind of accelerator."""

    count: int = 8
    """How many."""

    mfu: float = 0.4
    """Model FLOPs utilisation: the share of the peak that a training step reaches, by `flops_per_token`'s count."""

    price: float | None = None
    """Dollars per accelerator and hour; None prices nothing."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"gpus: {self.count} is below 1")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu: {self.mfu} is not in (0, 1]")
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise ValueError(f"price: {self.price} is not a number of dollars of 0 or more")

    @classmethod
    def of(cls, gpu: str, *, count: int, mfu: float, price: float | None) -> "Cluster":
        """Build a cluster from the name of its accelerators.

        Args:
            gpu: A name in `GPUS`.
            count: How many.
            mfu: Model FLOPs utilisation.
            price: Dollars per accelerator and hour.

        Returns:
            The cluster.

        Raises:
            ValueError: The name is unknown, or a number out of its range.
        """
        if gpu not in GPUS:
            raise ValueError(f"gpu: {gpu!r} is not in the table; {strict_yaml.nearest(gpu, GPUS)}")
        return cls(gpu=GPUS[gpu], count=count, mfu=mfu, price=price)

    def hours(self, flops: float) -> float:
        """Return the wall-clock hours that FLOPs take.

        Args:
            flops: Training FLOPs.

        Returns:
            Hours.

        >>> round(Cluster(count=8, mfu=0.4).hours(46e18), 1)
        4.0
        """
        return flops / (self.count * self.gpu.peak_flops * self.mfu) / 3600

    def dollars(self, flops: float) -> float | None:
        """Return what FLOPs cost.

        Args:
            flops: Training FLOPs.

        Returns:
            Dollars; None without a price.
        """
        return None if self.price is None else self.hours(flops) * self.count * self.price


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A transfer efficiency and where it was measured."""

    eta: float
    """η, the share of the parent's lineage that a child is spared."""

    low: float | None = None
    """Lower end of its interval."""

    high: float | None = None
    """Upper end of its interval."""

    source: str = "as given"
    """Where it is from."""

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and not self.low <= self.eta <= self.high:
            raise ValueError(f"recipe-eta: {self.eta} is not between {self.low} and {self.high}; give ETA [LOW HIGH]")


def read_evidence(words: Sequence[str]) -> Evidence:
    """Read a transfer efficiency: numbers, or a study's record.

    Args:
        words: η, with or without the two ends of its interval; or the path of a `study.json`, of which the mean over
            its headline's rungs is taken, and of their ends likewise.

    Returns:
        The evidence.

    Raises:
        ValueError: The words are neither, or the study has no headline.
        FileNotFoundError: There is no such file.
    """
    if len(words) == 1 and words[0].endswith(".json"):
        return _from_study(Path(words[0]))
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3):
        raise ValueError(f"recipe-eta: {' '.join(words)!r} is neither ETA, nor ETA LOW HIGH, nor a study.json")
    return Evidence(eta=numbers[0], low=numbers[1] if numbers[1:] else None, high=numbers[2] if numbers[1:] else None)


def _from_study(path: Path) -> Evidence:
    study = json.loads(path.read_text(encoding="utf-8"))
    rungs = [rung for rung in study.get("headline", {}).get("rungs", []) if rung.get("eta") is not None]
    if not rungs:
        raise ValueError(f"recipe-eta: {path} has no headline with a transfer efficiency; finish the study")
    ends = {key: [rung[f"eta_{key}"] for rung in rungs] for key in ("low", "high")}
    means = {key: None if None in values else sum(values) / len(values) for key, values in ends.items()}
    recipe = study["headline"].get("recipe")
    return Evidence(
        eta=sum(rung["eta"] for rung in rungs) / len(rungs), **means, source=f"{path.name}, recipe {recipe!r}"
    )


def inherited_flops(cold: Sequence[float], eta: float) -> list[float]:
    """Return what each rung takes to match its cold twin at one transfer efficiency on every step.

    C_child = C_cold − η·L, where L is everything that went into the parent, its ancestors included; at η = 1 the sum
    over the family telescopes to the last rung's cold cost.

    Args:
        cold: FLOPs of every rung trained from nothing, from the smallest.
        eta: The transfer efficiency.

    Returns:
        FLOPs of every rung, none below 0; the first is cold.

    >>> inherited_flops([2.0, 3.0, 5.0], eta=1.0)
    [2.0, 1.0, 2.0]
    """
    own: list[float] = []
    for flops in cold:
        own.append(max(0.0, flops - eta * sum(own)) if own else flops)
    return own


@dataclass(frozen=True, kw_only=True)
class LadderPrice:
    """A planned ladder, priced."""

    plan: LadderPlan
    """The plan."""

    cluster: Cluster
    """What it runs on."""

    evidence: Evidence | None = None
    """The transfer efficiency that is counted on; None where none was named."""

    budget_dollars: float | None = None
    """Dollars that the run may cost; None for no limit."""

    budget_hours: float | None = None
    """Hours that the run may take; None for no limit."""

    def to_dict(self) -> dict[str, Any]:
        """Return the plan with its prices as plain values.

        Returns:
            `LadderPlan.to_dict` and, per rung and for the family, hours, dollars, memory and disk.
        """
        plan = self.plan.to_dict()
        by_eta = self._by_eta()
        rungs = [
            {**entry, **self._rung(rung, {key: flops[index] for key, flops in by_eta.items()})}
            for index, (entry, rung) in enumerate(zip(plan["rungs"], self.plan.rungs, strict=True))
        ]
        family = {
            "cold": self._cost(plan["flops"]["all_cold"]),
            "as_configured": self._cost(plan["flops"]["all_inherited"]),
            "to_match": {key: self._cost(sum(flops[self._first_trained :])) for key, flops in by_eta.items()} or None,
            "last_alone": self._cost(plan["flops"]["last_alone"]),
            "this_run": self._cost(sum(self._run_flops(rung) for rung in self.plan.rungs)),
            "disk_bytes": sum(rung["disk_bytes"] for rung in rungs),
        }
        return {
            **plan,
            "rungs": rungs,
            "family": family,
            "budget": {"dollars": self.budget_dollars, "hours": self.budget_hours},
            "cluster": dataclasses.asdict(self.cluster),
            "evidence": None if self.evidence is None else dataclasses.asdict(self.evidence),
        }

    def table(self) -> str:
        """Return the prices as a table of plain text.

        Returns:
            A line per rung, the family's prices, and what does not fit.
        """
        record = self.to_dict()
        key = "to_match" if self.evidence else "as_configured"
        header = (
            "rung", "cold: FLOPs", "hours", "dollars", "inherited: FLOPs", "hours", "dollars", "tokens : params",
            "effective", "GB per GPU", "sharded", "GB on disk",
        )  # fmt: skip
        rows = [header, *(_row(rung, key) for rung in record["rungs"])]
        tail = [*self._family_lines(record["family"]), *self._warnings(record["rungs"])]
        return "\n".join([*aligned(rows), "", *tail])

    def _family_lines(self, family: dict[str, Any]) -> list[str]:
        cluster, training = self.cluster, self.plan.config.training
        price = "" if cluster.price is None else f" at ${cluster.price:g} per GPU-hour"
        entries = [("every rung cold", family["cold"])]
        if self.evidence is not None:
            interval = "" if self.evidence.low is None else f", {self.evidence.low:g} … {self.evidence.high:g}"
            of = f"η = {self.evidence.eta:.3g}{interval} ({self.evidence.source})"
            entries += [(f"every rung inherited, to match at {of}", family["to_match"]["expected"])]
            for key, text in (("at_best", "  at the upper end"), ("at_worst", "  at the lower end")):
                entries += [(text, family["to_match"][key])] if key in family["to_match"] else []
        share = f"every rung inherited, {training.inherited_fraction:g} of its cold budget each, as configured"
        entries += [(share, family["as_configured"]), ("the last rung alone, cold", family["last_alone"])]
        entries += [("this run, its cold twins included", family["this_run"])]
        head = f"{cluster.count} × {cluster.gpu.name} at {cluster.mfu:.0%} MFU{price}, estimates for Φ not counted:"
        return [head, *(f"  {_priced(cost)}  {text}" for text, cost in entries), *self._budget_lines(family)]

    def _budget_lines(self, family: dict[str, Any]) -> list[str]:
        run, lines = family["this_run"], []
        for unit, limit in (("dollars", self.budget_dollars), ("hours", self.budget_hours)):
            if limit is None or run[unit] is None:
                continue
            verdict = "within" if run[unit] <= limit else "over"
            share = run[unit] / limit
            lines.append(f"  this run takes {share:.0%} of the {limit:g} {unit} it may: {verdict} the budget")
        return lines

    def _warnings(self, rungs: Sequence[dict[str, Any]]) -> list[str]:
        gpu = self.cluster.gpu
        return [
            f"{rung['name']}: micro-batches of {memory['micro_batch_size']} take"
            f" {memory['replicated_bytes'] / 1e9:.0f} GB of the {gpu.name}'s {gpu.memory_gb:g};"
            f" set training.micro_batch_size to {memory['largest_micro_batch']} or less"
            for rung in rungs
            for memory in [rung["memory"]]
            if memory["replicated_bytes"] > _USABLE_MEMORY * gpu.memory_gb * 1e9
        ]

    @property
    def _first_trained(self) -> int:
        return 0 if self.plan.rungs[0].origin is None else 1  # a model trained elsewhere is not paid for again

    def _by_eta(self) -> dict[str, list[float]]:
        if self.evidence is None:
            return {}
        cold = [rung.cold_flops or 0.0 for rung in self.plan.rungs]
        etas = {"expected": self.evidence.eta, "at_best": self.evidence.high, "at_worst": self.evidence.low}
        return {key: inherited_flops(cold, eta) for key, eta in etas.items() if eta is not None}

    def _rung(self, rung: RungPlan, to_match: dict[str, float]) -> dict[str, Any]:
        parameters, per_token = rung.parameters, rung.size.flops_per_token
        counted = getattr(parameters, self.plan.config.training.budget_parameters)
        expected = to_match.get("expected", rung.flops) / per_token
        return {
            "cold": self._cost(rung.cold_flops or 0.0),
            "as_configured": self._cost(rung.flops),
            "to_match": {key: self._cost(flops) for key, flops in to_match.items()} or None,
            "tokens_per_parameter": {
                "cold": rung.size.tokens / counted,
                "spent": expected / counted,
                "effective": rung.size.tokens / counted if to_match or rung.parent is None else None,
            },
            "memory": self._memory(rung),
            "disk_bytes": self._disk(rung),
        }

    def _cost(self, flops: float) -> dict[str, float | None]:
        return {"flops": flops, "hours": self.cluster.hours(flops), "dollars": self.cluster.dollars(flops)}

    def _run_flops(self, rung: RungPlan) -> float:
        return rung.flops + (rung.size.flops if rung.trains_cold else 0.0)

    def _memory(self, rung: RungPlan) -> dict[str, Any]:
        config = self.plan.config
        size, accumulation = micro_batches(config.training, config.model.context, self.cluster.count)
        per_sequence = activation_bytes(rung.config, context=config.model.context, bf16=_is_bf16(config))
        phi = config.phi
        state = {
            "with_penalty": rung.parent is not None and (phi.ewc_lambda > 0 or phi.gamma > 0),
            "with_fisher": phi.ewc_lambda > 0,
        }
        total = rung.parameters.total
        room = _USABLE_MEMORY * self.cluster.gpu.memory_gb * 1e9 - training_bytes(
            total, sequences=0, per_sequence=per_sequence, **state
        )
        return {
            "micro_batch_size": size,
            "accumulation_steps": accumulation,
            "replicated_bytes": training_bytes(total, sequences=size, per_sequence=per_sequence, **state),
            "sharded_bytes": training_bytes(
                total, sequences=size, per_sequence=per_sequence, shards=self.cluster.count, **state
            ),
            "largest_micro_batch": max(0, int(room // per_sequence)),
        }

    def _disk(self, rung: RungPlan) -> int:
        config = self.plan.config
        return disk_bytes(
            rung.parameters.total,
            grown=rung.parent is not None,
            cold_twin=rung.trains_cold,
            stable=config.training.keep_stable or config.growth.parent == "stable",
            with_fisher=config.phi.ewc_lambda > 0,
        )


def _row(rung: dict[str, Any], key: str) -> tuple[str, ...]:
    cold, memory, tokens = rung["cold"], rung["memory"], rung["tokens_per_parameter"]
    inherited = rung[key]["expected"] if key == "to_match" else rung[key]
    grown = rung["parent"] is not None
    spent = tokens["spent"] if grown else tokens["cold"]
    sizes = (memory["replicated_bytes"], memory["sharded_bytes"], rung["disk_bytes"])
    return (
        rung["name"],
        *_cells(cold),
        *(_cells(inherited) if grown else ("–", "–", "–")),
        f"{spent:.2f}",
        "–" if tokens["effective"] is None else f"{tokens['effective']:.2f}",
        *(f"{size / 1e9:.3g}" for size in sizes),
    )


def _cells(cost: dict[str, Any]) -> tuple[str, str, str]:
    dollars = "–" if cost["dollars"] is None else f"{cost['dollars']:.2f}"
    return f"{cost['flops']:.3g}", f"{cost['hours']:.3g}", dollars


def _priced(cost: dict[str, Any]) -> str:
    dollars = "" if cost["dollars"] is None else f"  ${cost['dollars']:>8.2f}"
    return f"{cost['flops']:>9.3g} FLOPs  {cost['hours']:>7.3g} h{dollars}"


def _is_bf16(config: LadderConfig) -> bool:
    return bool(config.training.arguments.get("bf16"))
