"""What a ladder costs on accelerators: hours, dollars, memory and disk, cold and inherited.

Three prices are kept apart: every model from scratch, every model inherited, and the last model alone. What
inheritance costs is given twice, where it is known: as the configuration trains it (`inherited_fraction` of every cold
budget), and as a measured transfer efficiency η says it takes to match the baselines. What the last model costs by
way of the others stands beside its price alone, by a law fitted to the studies that are named. These are of training
alone. What a run does beside it (validation, estimates for Φ, CORE, saving) stands by itself, and in the sum of what
the run takes.

Time comes from FLOPs by the speed of each rung: an assumed share of the peak, or what `measure` saw.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hf_progressive.config import LadderConfig
from hf_progressive.planning.cluster import Cluster, DataSupply
from hf_progressive.planning.evidence import Evidence, inherited_flops
from hf_progressive.planning.forecast import forecast
from hf_progressive.planning.ladder_plan import LadderPlan, RungPlan
from hf_progressive.planning.memory import (
    disk_bytes,
    muon_parameters,
    penalty_state,
    saved_bytes,
    sequence_bytes,
    training_bytes,
)
from hf_progressive.planning.observations import unmatched
from hf_progressive.planning.overhead import core_tokens, estimate_flops, validation
from hf_progressive.planning.speed import Measurement, Speed, speeds
from hf_progressive.records.study import StudyRecord
from hf_progressive.training.flops import FORWARD_SHARE
from hf_progressive.training.training_run import micro_batches

_USABLE_MEMORY = 0.9

Cost = dict[str, Any]
"""`flops`, `hours` and `dollars`; the last is None without a price, the last two where no speed is known."""


@dataclass(frozen=True, kw_only=True)
class LadderPrice:
    """A planned ladder, priced."""

    plan: LadderPlan
    """The plan."""

    cluster: Cluster
    """What it runs on."""

    evidence: Evidence | None = None
    """The transfer efficiency that is counted on; None where none was named."""

    studies: tuple[StudyRecord, ...] = ()
    """The studies that it is from, by which the last model's cost is predicted too."""

    measurement: Measurement | None = None
    """What was timed on the machine at hand; None prices with the cluster's MFU."""

    budget_dollars: float | None = None
    """Dollars that the run may cost; None for no limit."""

    budget_hours: float | None = None
    """Hours that the run may take; None for no limit."""

    cores: int | None = None
    """Cores of the machine that trains; None assumes some for each accelerator."""

    def to_dict(self) -> dict[str, Any]:
        """Return `LadderPlan.to_dict` and, per rung and for the family, hours, dollars, memory and disk."""
        plan, by_eta = self.plan.to_dict(), self._by_eta()
        rungs = []
        for index, speed in enumerate(speeds(self.plan, self.cluster, self.measurement)):
            price = _RungPrice(price=self, rung=self.plan.rungs[index], speed=speed)
            to_match = {key: flops[index] for key, flops in by_eta.items()}
            rungs.append({**plan["rungs"][index], **price.to_dict(to_match)})
        trained = rungs[0 if self.plan.rungs[0].origin is None else 1 :]  # what was trained elsewhere is paid for
        baselines = [rung["cold"] for rung in rungs if rung["trains_baseline"]]
        this_run = added([*(rung["as_configured"] for rung in rungs), *baselines])
        validated = added(rung[key] for key in ("validation", "cold_validation") for rung in rungs if rung[key])
        beside = {
            "validation": validated,
            "estimates": added(rung["estimates"] for rung in rungs),
            "core": added(rung["core"] for rung in rungs) if self.plan.config.core else None,
            "saving": added(rung["saving"] for rung in rungs),
        }
        last_model = self._last_model(by_eta)
        in_all = added([this_run, *filter(None, beside.values())])
        family = {
            "cold": added(rung["cold"] for rung in trained),
            "as_configured": added(rung["as_configured"] for rung in rungs),
            "to_match": {key: added(rung["to_match"][key] for rung in trained) for key in by_eta} or None,
            "last_alone": rungs[-1]["cold"],
            "last_grown": added([*(rung["handed_on"] for rung in rungs[:-1]), rungs[-1]["as_configured"]]),
            "last_model": None if last_model is None else self._scaled(rungs[-1]["cold"], last_model),
            "this_run": this_run,
            **beside,
            "validation_share": _share(validated["flops"], this_run["flops"]),
            "in_all": in_all,
            "disk_bytes": sum(rung["disk_bytes"] for rung in rungs),
        }
        return {
            **plan,
            "rungs": rungs,
            "family": family,
            "budget": {"dollars": self.budget_dollars, "hours": self.budget_hours},
            "inherited_fraction": self._inherited_fraction(),
            "cluster": dataclasses.asdict(self.cluster),
            "last_model": last_model,
            "unmatched": unmatched(self.studies),
            "evidence": None if self.evidence is None else dataclasses.asdict(self.evidence),
            "measurement": None if self.measurement is None else self.measurement.to_dict(),
            "data": self.data.to_dict(),
        }

    @property
    def data(self) -> DataSupply:
        """How fast the corpus comes."""
        streaming = self.plan.config.data.streaming and self.plan.config.data.prepared is None
        return DataSupply.of(streaming=streaming, gpus=self.cluster.count, cores=self.cores)

    def _inherited_fraction(self) -> float | None:
        # The share of its budget that every grown rung trains; None where rungs differ, and where none is grown.
        config, grown = self.plan.config, [rung for rung in self.plan.rungs if rung.parent is not None]
        shares = {config.training_of(rung.name).inherited_fraction for rung in grown}
        return shares.pop() if len(shares) == 1 else None

    def _by_eta(self) -> dict[str, list[float]]:
        if self.evidence is None or self.plan.config.schedule == "trunk":
            return {}  # a trunk's members cost what is planned
        cold = [rung.cold_flops or 0.0 for rung in self.plan.rungs]
        etas = {"expected": self.evidence.eta, "at_best": self.evidence.high, "at_worst": self.evidence.low}
        return {key: inherited_flops(cold, eta) for key, eta in etas.items() if eta is not None}

    def _last_model(self, by_eta: dict[str, list[float]]) -> dict[str, Any] | None:
        """Return the last-model cost that is to be expected, and what it is based on; None where nothing says it."""
        predicted = forecast(self.studies, self.plan)
        if predicted is not None:
            return predicted.to_dict()
        alone = self.plan.rungs[-1].cold_flops
        if not by_eta or not alone:
            return None
        value = {key: sum(flops) / alone for key, flops in by_eta.items()}
        return {"value": value["expected"], "low": value.get("at_best"), "high": value.get("at_worst"), "basis": "eta"}

    @staticmethod
    def _scaled(alone: Cost, cost: dict[str, Any]) -> dict[str, Cost | None]:
        def times(share: float | None) -> Cost | None:
            known = {unit: None if alone[unit] is None else alone[unit] * (share or 0.0) for unit in alone}
            return None if share is None else known

        return {"expected": times(cost["value"]), "at_best": times(cost["low"]), "at_worst": times(cost["high"])}


def added(costs: Iterable[Cost]) -> Cost:
    """Add costs up; what is not known of one is left out of the sum.

    >>> added([{"flops": 1.0, "hours": 2.0, "dollars": None}, {"flops": 3.0, "hours": 1.0, "dollars": None}])
    {'flops': 4.0, 'hours': 3.0, 'dollars': None}
    """
    costs = list(costs)
    total: Cost = {"flops": sum(cost["flops"] for cost in costs)}
    for unit in ("hours", "dollars"):
        known = [cost[unit] for cost in costs if cost[unit] is not None]
        total[unit] = sum(known) if known or not costs else None
    return total


def _share(part: float, flops: float) -> float | None:
    return part / flops if flops else None


@dataclass(frozen=True, kw_only=True)
class _RungPrice:
    """One rung's prices."""

    price: LadderPrice
    rung: RungPlan
    speed: Speed

    @property
    def config(self) -> LadderConfig:
        return self.price.plan.config

    def cost(self, flops: float, *, forward: bool = False) -> Cost:
        rate = self.speed.forward if forward else self.speed.training
        return self._timed(flops, flops / (rate * self.price.cluster.count) / 3600)

    def _timed(self, flops: float, hours: float | None) -> Cost:
        count, price = self.price.cluster.count, self.price.cluster.price
        dollars = None if price is None or hours is None else hours * count * price
        return {"flops": flops, "hours": hours, "dollars": dollars}

    def _validation(self, steps: int) -> Cost:
        size, (points, tokens, flops) = self.rung.size, validation(self.config, self.rung, steps=steps)
        share = _share(flops, steps * size.batch_tokens * size.flops_per_token)
        return {**self.cost(flops, forward=True), "points": points, "tokens": tokens, "share": share}

    def _estimates(self) -> Cost:
        by_term = estimate_flops(self.price.plan.next_phi(self.rung), self.rung, self.config.model.context)
        return {**self.cost(sum(by_term.values())), "by_term": by_term}

    def _core(self) -> Cost | None:
        if self.config.core is None:
            return None
        tokens = core_tokens(self.config.core, self.config.model.context)
        flops = tokens * self.rung.size.flops_per_token * FORWARD_SHARE
        return {**self.cost(flops, forward=True), "tokens": tokens}

    def _saving(self) -> Cost:
        training, measured = self.config.training_of(self.rung.name), self.price.measurement
        total, of_muon, part = self.rung.parameters.total, self._of_muon, self.rung.trunk
        written = saved_bytes(
            total,
            checkpoints=min(training.checkpoints, self.rung.steps),
            stable=self.rung.keeps_stable,
            with_fisher=self.price.plan.next_phi(self.rung).estimates_fisher,
            of_muon=of_muon,
            averaged=0 if part is None else len(part.averaged_steps),
            **self._moments_beside,
        )
        if self.rung.trains_baseline:
            checkpoints = min(training.checkpoints, self.rung.size.steps)
            written += saved_bytes(total, checkpoints=checkpoints, stable=False, with_fisher=False, of_muon=of_muon)
        hours = None if measured is None else written / measured.saving_bytes_per_second / 3600
        return {**self._timed(0.0, hours), "bytes": written}

    def to_dict(self, to_match: dict[str, float]) -> dict[str, Any]:
        rung, parameters, per_token = self.rung, self.rung.parameters, self.rung.size.flops_per_token
        counted = getattr(parameters, self.config.training_of(rung.name).budget_parameters)
        expected = to_match.get("expected", rung.flops) / per_token
        eaten = self.speed.training * self.price.cluster.count / per_token
        next_phi = self.price.plan.next_phi(rung)
        return {
            "cold": self.cost(rung.cold_flops or 0.0),
            "as_configured": self.cost(rung.flops),
            "handed_on": self.cost(rung.flops_handed_on),
            "to_match": {key: self.cost(flops) for key, flops in to_match.items()} or None,
            "validation": self._validation(rung.steps),
            "cold_validation": self._validation(rung.size.steps) if rung.trains_baseline else None,
            "estimates": self._estimates(),
            "core": self._core(),
            "saving": self._saving(),
            "tokens_per_second": eaten,
            "data_supply": None if rung.origin is not None else self.price.data.share(eaten),
            "speed": dataclasses.asdict(self.speed),
            "tokens_per_parameter": {
                "cold": rung.size.tokens / counted,
                "spent": expected / counted,
                "effective": rung.size.tokens / counted if to_match or rung.parent is None else None,
            },
            "memory": self._memory(),
            "disk_bytes": disk_bytes(
                parameters.total,
                baseline=rung.trains_baseline,
                stable=rung.keeps_stable,
                with_fisher=next_phi.estimates_fisher,
                of_muon=self._of_muon,
                **self._moments_beside,
            ),
        }

    @property
    def _moments_beside(self) -> dict[str, bool]:
        # The optimizer's state beside weights: kept with those from which the next rung grows, and grown with them.
        grown = self.rung.trunk is not None and self.config.trunk.moments == "grown"
        kept = grown or self.price.plan.next_phi(self.rung).reads_optimizer
        return {
            "stable_moments": kept and self.rung.hands_on == "stable",
            "initial_moments": grown and self.rung.parent is not None,
        }

    @property
    def _of_muon(self) -> int:
        return muon_parameters(self.rung.config, self.config.training_of(self.rung.name))

    def _memory(self) -> dict[str, Any]:
        cluster, rung = self.price.cluster, self.rung
        training, context = self.config.training_of(rung.name), self.config.model.context
        size, accumulation = micro_batches(training, context, cluster.count)
        per_sequence = sequence_bytes(rung.config, training, context=context, on_gpu=cluster.gpu.name != "cpu")
        state = penalty_state(self.config.phi_of(rung.name), grown=rung.parent is not None)
        total, of_muon = rung.parameters.total, self._of_muon

        rewarm_new = rung.trunk is not None and rung.parent is not None and self.config.trunk.rewarm == "new"

        def held(sequences: int, shards: int = 1) -> int:
            return training_bytes(
                total,
                sequences=sequences,
                per_sequence=per_sequence,
                shards=shards,
                of_muon=of_muon,
                rewarm_new=rewarm_new,
                **state,
            )

        free = _USABLE_MEMORY * cluster.gpu.memory_gb * 1e9 - held(0)
        return {
            "micro_batch_size": size,
            "largest_wanted": min(training.micro_batch_size, size * accumulation),
            "accumulation_steps": accumulation,
            "replicated_bytes": held(size),
            "sharded_bytes": held(size, cluster.count),
            "largest_micro_batch": max(0, int(free // per_sequence)),
            "fits": size * per_sequence <= free,
        }
