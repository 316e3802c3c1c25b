"""What a ladder costs on accelerators: hours, dollars, memory and disk, cold and inherited.

Three prices are kept apart: every model from nothing, every model inherited, and the last model alone. What
inheritance costs is given twice, where it is known: as the configuration trains it (`inherited_fraction` of every cold
budget), and as a measured transfer efficiency η says it takes to match the cold twins.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_progressive import storage, strict_yaml
from hf_progressive.accelerators import GPUS, Gpu
from hf_progressive.arm import micro_batches
from hf_progressive.config import LadderConfig
from hf_progressive.ladder_plan import LadderPlan, RungPlan
from hf_progressive.memory import activation_bytes, disk_bytes, training_bytes

_USABLE_MEMORY = 0.9


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
        ValueError: The words are neither, or a rung of the study's headline did not match.
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
    headline = storage.read_json(path).get("headline", {})
    rungs = headline.get("rungs", [])
    short = [rung["child"] for rung in rungs if rung["eta"] is None]
    if not rungs or short:
        missing = f"{', '.join(short)} did not match" if short else "its headline has no finished rung"
        raise ValueError(f"recipe-eta: {path}: {missing}, so it has no mean efficiency; finish the study or give ETA")
    eta, low, high = ([rung[key] for rung in rungs] for key in ("eta", "eta_low", "eta_high"))
    return Evidence(
        eta=fmean(eta),
        low=None if None in low else fmean(low),
        high=None if None in high else fmean(high),
        source=f"{path.name}, recipe {headline['recipe']!r}",
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
            "inherited_fraction": self.plan.config.training.inherited_fraction,
            "cluster": dataclasses.asdict(self.cluster),
            "evidence": None if self.evidence is None else dataclasses.asdict(self.evidence),
        }

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
            "fits": size * per_sequence <= room,
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


def _is_bf16(config: LadderConfig) -> bool:
    return bool(config.training.arguments.get("bf16"))
