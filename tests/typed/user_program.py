"""A user's program against the public API; `.ci/plain_install` has `mypy --strict` check it, and nobody runs it."""

from pathlib import Path

import torch
from torch import Tensor

from hf_progressive import (
    GrowthReport,
    InheritancePenalty,
    ProgressiveTrainer,
    ProgressiveTrainingArguments,
    RungResult,
    bits_per_byte,
    estimate_fisher,
    fisher_from_optimizer,
    grow_checkpoint,
    grow_model,
    learn_subspace,
    load_ladder_config,
    load_penalty,
    plan_growth,
    plan_ladder,
    publish_rung,
    run_ladder,
    verify_growth,
    write_report,
)


def grow(source: str, output: Path) -> float:
    report: GrowthReport = grow_checkpoint(source, output, {"n_layer": 8}, method="exact", seed=1)
    again = verify_growth(source, output, dtype="float64")
    assert again.preserved
    assert report.verification is not None
    return max(report.verification.max_abs_logit_diff, again.kl)


def hold(model: torch.nn.Module, batches: list[dict[str, Tensor]]) -> float:
    fisher: dict[str, Tensor] = estimate_fisher(model, batches, kind="empirical")
    subspace: dict[str, Tensor] = learn_subspace(model, source="weights", energy=0.95)
    anchor = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    penalty = InheritancePenalty(anchor, fisher, subspace, ewc_lambda=1.0, gamma=0.1)
    terms: dict[str, Tensor] = penalty.terms(model)
    arguments = ProgressiveTrainingArguments(output_dir="out", max_steps=4, phi_until=0.5)
    ProgressiveTrainer(model=model, args=arguments, penalty=penalty).train()
    return float(terms["ewc"]) + float(penalty.value(model))


def climb(path: str) -> list[str]:
    config = load_ladder_config(path, ["training.learning_rate=1e-3"])
    table: str = plan_ladder(config).table()
    results: list[RungResult] = run_ladder(config, "runs/mine")
    page: Path = write_report("runs/mine").html
    address: str = publish_rung("runs/mine/last/final", "ORG/last", license="apache-2.0", dry_run=True)
    return [table, str(page), address, *(result.name for result in results)]


NAMES = (bits_per_byte, fisher_from_optimizer, grow_model, load_penalty, plan_growth)
