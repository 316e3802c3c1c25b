"""Φ from what a rung stores: its estimates, mapped into the coordinates of the model that Φ is to hold."""

import os
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import AutoConfig

from hf_progressive.config import FisherConfig, GrowthConfig, PhiConfig, SubspaceConfig
from hf_progressive.config.ranges import shown
from hf_progressive.estimation.saved_estimates import FisherRecord, SubspaceRecord, open_estimate
from hf_progressive.growth import GrowthPlan, plan_growth
from hf_progressive.growth.expert_pieces import StockTensors
from hf_progressive.growth.grow import RECORD_NAME as GROWTH_NAME
from hf_progressive.growth.methods import METHODS
from hf_progressive.growth.reader import CheckpointReader
from hf_progressive.growth.tensor_plan import TensorPlan
from hf_progressive.hub.fetch import locate_rung
from hf_progressive.hub.names import CONFIG_NAME, RECORD_NAME
from hf_progressive.penalty import InheritancePenalty, LoraPenalty
from hf_progressive.penalty.lazy_tensors import LazyTensors
from hf_progressive.penalty.saved_penalty import DESCRIPTION_NAME, KEPT_PENALTY_NAME, load_saved_penalty
from hf_progressive.penalty.specification import Application, Side
from hf_progressive.storage import MANIFEST_NAME, ReadingFromOutside, check_manifest, read_json
from hf_progressive.training.checkpoints import PENALTY_NAME

FISHER_FILE, SUBSPACE_FILE = "phi/fisher.safetensors", "phi/subspace.safetensors"
"""The estimates, in a checkpoint's folder."""


def load_penalty(
    source: str | os.PathLike[str],
    *,
    child: str | os.PathLike[str] | None = None,
    ewc_lambda: float | None = None,
    gamma: float | None = None,
    fisher: Literal["estimated", "ones"] = "estimated",
    apply: Application = "gradient",
    subspace_side: Side = "outside",
    revision: str | None = None,
) -> InheritancePenalty | LoraPenalty:
    """Load the inheritance penalty Φ that a rung or a checkpoint stores.

    Three things can be loaded:

    - of a *rung*, with `child`: Φ for a model grown from it. W₀ are the child's weights, Ω and U the rung's estimates,
      mapped into the child's coordinates by the growth that the child's `growth.json` records;
    - of a *rung* alone: Φ that holds the rung itself, for training it on, on other data for instance;
    - of a *checkpoint* that `ProgressiveTrainer` saved: Φ as the run had it, which resuming needs.

    Args:
        source: A rung's folder (`RUN/NAME/final`) or its repository on the Hub (ORG/NAME); or a checkpoint's folder,
            or its `phi` folder. It must stay as it is while the penalty is in use: tensors are read when needed.
        child: The folder that `grow_checkpoint` wrote from the rung, not trained yet. It must stay too.
        ewc_lambda: λ, weight of ½ Σ Ωᵢᵢ ΔWᵢ², in nats per token; None or 0 leaves the term out. Not for a
            checkpoint, which knows its own.
        gamma: γ, weight of Tr((I − UUᵀ) ΔW ΔWᵀ (I − UUᵀ)ᵀ); likewise.
        fisher: "ones" for L2-SP, Ω = 1 on every entry that the rung has, which needs no estimate.
        apply: How training is to apply it, "gradient" or "proximal" (see `InheritancePenalty`). Not for a checkpoint.
        subspace_side: What γ restrains, "outside" or "inside". Not for a checkpoint.
        revision: Branch, tag or commit of a rung on the Hub; None takes the newest. Not for a folder.

    Returns:
        The penalty, for `ProgressiveTrainer(..., penalty=...)`.

    Raises:
        FileNotFoundError: There is no such rung, or it does not hold an estimate that a weight asks for.
        ValueError: No weight is given for a rung, or one for a checkpoint; the child was not grown from the rung, or
            is trained already; or a file is damaged.

    >>> args = ProgressiveTrainingArguments(output_dir="out")  # doctest: +SKIP
    >>> penalty = load_penalty("ORG/d11", child="grown", ewc_lambda=0.01)  # doctest: +SKIP
    >>> ProgressiveTrainer(model, args, train_dataset=blocks, penalty=penalty).train()  # doctest: +SKIP
    """
    folder = Path(source)
    for saved in (folder, folder / PENALTY_NAME, folder / KEPT_PENALTY_NAME):
        if (saved / DESCRIPTION_NAME).is_file():
            given = (child, ewc_lambda, gamma, fisher, apply, subspace_side)
            if given != (None, None, None, "estimated", "gradient", "outside"):
                raise ValueError(f"{saved}: holds a whole penalty; leave out child, ewc_lambda and gamma")
            return load_saved_penalty(saved)
    if fisher not in ("estimated", "ones"):
        raise ValueError(f"fisher is {shown(fisher)}; give 'estimated' for the rung's own, or 'ones' for L2-SP")
    phi = PhiConfig(
        ewc_lambda=ewc_lambda or 0.0,
        gamma=gamma or 0.0,
        apply=apply,
        fisher=FisherConfig(kind="ones" if fisher == "ones" else "empirical"),
        subspace=SubspaceConfig(side=subspace_side),
    )
    folder = locate_rung(os.fspath(source), revision=revision)
    if not (folder / CONFIG_NAME).is_file():
        wanted = "a rung's folder, RUN/NAME/final, or a checkpoint's, which ProgressiveTrainer saved"
        raise FileNotFoundError(f"{source}: holds neither {CONFIG_NAME} nor {DESCRIPTION_NAME}; give {wanted}")
    if not phi.is_off:
        _require_estimates(phi, folder, str(source))
    config = AutoConfig.from_pretrained(folder)
    growth = plan_growth(config, config) if child is None else _recorded_growth(folder, config, Path(child))
    penalty = _penalty(phi, anchor=folder if child is None else Path(child), parent=folder, growth=growth)
    if penalty is None:
        if (folder / "trainer_state.json").is_file():
            raise ValueError(
                f"{source}: is a checkpoint without a penalty, of a training without one or saved with"
                " save_only_model, so there is none to load"
            )
        raise ValueError(f"{source}: a rung stores what Φ is made of, not its weights; give ewc_lambda or gamma")
    return penalty


def _require_estimates(phi: PhiConfig, folder: Path, source: str) -> None:
    # A rung stores what its ladder's Φ wants for a successor; any other checkpoint stores none.
    if phi.ewc_lambda > 0 and phi.estimates_fisher and not (folder / FISHER_FILE).is_file():
        raise FileNotFoundError(
            f"{source}: stores no Fisher information ({FISHER_FILE}), as rungs do whose ladder has phi.ewc_lambda;"
            " give fisher='ones' for L2-SP, or InheritancePenalty one of estimate_fisher"
        )
    if phi.gamma > 0 and not (folder / SUBSPACE_FILE).is_file():
        raise FileNotFoundError(
            f"{source}: stores no subspaces ({SUBSPACE_FILE}), as rungs do whose ladder has phi.gamma; give"
            " InheritancePenalty those of learn_subspace"
        )


def _recorded_growth(parent: Path, config: object, child: Path) -> GrowthPlan:
    if (child / RECORD_NAME).exists():
        raise ValueError(f"{child}: is trained already; Φ is anchored where the child starts, in RUN/NAME/init")
    if (child / MANIFEST_NAME).is_file():
        try:
            check_manifest(child, contents=False)
        except ValueError as error:
            raise ValueError(
                f"{error}; Φ is anchored where the child starts, so grow it again, and save what is trained elsewhere"
            ) from None
    record = read_json(child / GROWTH_NAME)
    with ReadingFromOutside(f"{parent / MANIFEST_NAME}", "fetch it again, or write it anew"):
        held = {name: entry.get("sha256") for name, entry in read_json(parent / MANIFEST_NAME)["files"].items()}
    with ReadingFromOutside(f"{child / GROWTH_NAME}", "grow the checkpoint again"):
        read = {name: entry.get("sha256") for name, entry in record["source"]["files"].items()}
        method, options = record["method"], dict(record["options"])
    if method in METHODS and not METHODS[method].inherits:
        raise ValueError(f"{child}: was grown by {method!r} and inherits nothing that Φ could hold; grow it otherwise")
    for name in read.keys() & held.keys():
        if None not in (read[name], held[name]) and read[name] != held[name]:
            raise ValueError(f"{child}: was not grown from {parent}; its parent had another {name}")
    with ReadingFromOutside(f"{child / GROWTH_NAME}", "grow the checkpoint again"):
        return plan_growth(config, AutoConfig.from_pretrained(child), method=method, **options)


def rung_penalty(phi: PhiConfig, growth: GrowthConfig, *, init: Path, parent: Path) -> InheritancePenalty | None:
    """Build Φ of a rung from its initial checkpoint and its parent's estimates; None where both weights are 0."""
    source, target = (AutoConfig.from_pretrained(folder) for folder in (parent, init))
    plan = plan_growth(source, target, method=growth.method, **growth.options)
    return _penalty(phi, anchor=init, parent=parent, growth=plan)


def _penalty(phi: PhiConfig, *, anchor: Path, parent: Path, growth: GrowthPlan) -> InheritancePenalty | None:
    # W₀ are the anchor's weights; the growth maps the parent's estimates.
    if phi.is_off:
        return None
    reader = StockTensors(growth.family, growth.target_config, CheckpointReader(anchor))
    fisher = subspace = None
    if phi.ewc_lambda > 0 and not phi.estimates_fisher:
        fisher = _ones(growth, reader.specs)
    elif phi.ewc_lambda > 0:
        squared = partial(TensorPlan.carry, power=2)
        fisher = _carried(open_estimate(parent / FISHER_FILE, FisherRecord), growth, squared)
    if phi.gamma > 0:
        bases = open_estimate(parent / SUBSPACE_FILE, SubspaceRecord)
        subspace = _carried(bases, growth, TensorPlan.carry_basis, matrices=True)
    return InheritancePenalty(
        LazyTensors(reader.specs, reader.read),
        fisher,
        subspace,
        ewc_lambda=phi.ewc_lambda,
        gamma=phi.gamma,
        apply=phi.apply,
        subspace_side=phi.subspace.side,
    )


def _ones(growth: GrowthPlan, parameters: Collection[str]) -> LazyTensors:
    # 1 on what the parent had, 0 on what is new; in the memory of a number where nothing is new
    def read(name: str) -> Tensor:
        inherited = growth.inherited_mask(name)
        return torch.ones(()).expand(inherited.shape) if bool(inherited.all()) else inherited.float()

    return LazyTensors([tensor.name for tensor in growth.tensors if tensor.name in parameters], read)


def _carried(
    stored: LazyTensors, growth: GrowthPlan, carry: Callable[..., Tensor], *, matrices: bool = False
) -> LazyTensors:
    # Tensor by tensor, when they are read: where the model is divided, no process holds Ω and U whole.
    carried = growth.carried_from(stored, matrices=matrices)

    def read(name: str) -> Tensor:
        tensor, sources = carried[name]
        return carry(tensor, *(stored[source] for source in sources))

    return LazyTensors(carried, read)
