"""What a trained rung hands to its successor: Fisher information and subspace, estimated and stored."""

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from hf_progressive import storage
from hf_progressive.config import PhiConfig
from hf_progressive.data import Corpus, rung_blocks
from hf_progressive.distributed.batching import sequences_that_fit, with_fewer
from hf_progressive.distributed.float32_products import float32_products
from hf_progressive.distributed.processes import main_process_first
from hf_progressive.estimation.fisher import estimate_fisher, fisher_flops
from hf_progressive.estimation.saved_estimates import (
    FisherRecord,
    SubspaceRecord,
    read_record,
    save_estimate,
)
from hf_progressive.estimation.subspace import learn_subspace, subspace_flops
from hf_progressive.ladder.rung_penalty import FISHER_FILE, SUBSPACE_FILE
from hf_progressive.training.fisher_from_optimizer import fisher_from_optimizer
from hf_progressive.training.flops import meta_model

logger = logging.getLogger(__name__)


def estimate_inheritance(
    checkpoint: Path,
    phi: PhiConfig,
    corpus: Corpus,
    span: range,
    *,
    flops_per_token: float,
    state: PartialState,
    known: Mapping[str, Any] | None = None,
    optimizer: "KeptOptimizer | None" = None,
) -> dict[str, Any]:
    """Estimate what Φ needs of a trained model and store it in `phi/` beside the weights.

    Under several processes each reads its own share of the blocks; the first writes. Of `span`, the blocks that the
    model was trained on, the last ones are used. `known` is what was recorded of estimates that came with the model:
    one made of these weights in the way that is wanted is kept, with its FLOPs; any other is made again. Where the
    Fisher information is read from the `optimizer` that trained the weights, neither data nor model is.

    Returns:
        For `fisher` and `subspace`, as far as they were estimated: how, from how many sequences, and the FLOPs spent.
    """
    if not phi.estimates_fisher and phi.gamma == 0:
        return {}
    weights = _weights_hash(checkpoint)
    costs = _kept_estimates(checkpoint, phi, weights, known or {})
    wanted = [*(["fisher"] if phi.estimates_fisher else []), *(["subspace"] if phi.gamma > 0 else [])]
    missing = [name for name in wanted if name not in costs]
    if not missing:
        return costs
    estimator = _Estimator(
        checkpoint=checkpoint,
        model_hash=weights,
        phi=phi,
        corpus=corpus,
        span=span,
        flops_per_token=flops_per_token,
        state=state,
        optimizer=optimizer,
    )
    for name in missing:
        tensors, record, flops = estimator.fisher() if name == "fisher" else estimator.subspace()
        costs[name] = {**_described(record), "flops": flops}
        with main_process_first(state):
            if state.is_main_process:
                save_estimate(checkpoint / (FISHER_FILE if name == "fisher" else SUBSPACE_FILE), tensors, record)
    return costs


def _kept_estimates(checkpoint: Path, phi: PhiConfig, weights: str, known: Mapping[str, Any]) -> dict[str, Any]:
    # The estimates beside the weights that are just what is wanted, as they were recorded.
    kept = {}
    if phi.estimates_fisher and "fisher" in known and (checkpoint / FISHER_FILE).is_file():
        fisher = read_record(checkpoint / FISHER_FILE, FisherRecord)
        made = ("sequence", 0) if phi.fisher.kind == "optimizer" else (phi.fisher.definition, phi.fisher.sequences)
        wanted = (phi.fisher.kind, *made, None, weights)
        if (fisher.kind, fisher.definition, fisher.sequences, fisher.normalize, fisher.model_hash) == wanted:
            kept["fisher"] = dict(known["fisher"])
    if phi.gamma > 0 and "subspace" in known and (checkpoint / SUBSPACE_FILE).is_file():
        subspace = read_record(checkpoint / SUBSPACE_FILE, SubspaceRecord)
        source, energy = phi.subspace.source, phi.subspace.energy
        sequences = 0 if source == "weights" else phi.subspace.sequences
        found = (subspace.source, subspace.energy, subspace.rank, subspace.sequences, subspace.model_hash)
        if found == (source, energy, None, sequences, weights):
            kept["subspace"] = dict(known["subspace"])
    for name in kept:
        logger.info("%s: its %s came with it and is kept", checkpoint, name)
    return kept


def _weights_hash(checkpoint: Path) -> str:
    # One digest for one file or many: that of the manifest's digests. Estimates lie in a folder below the weights.
    files = storage.read_json(checkpoint / storage.MANIFEST_NAME)["files"]
    digests = [entry["sha256"] for name, entry in sorted(files.items()) if fnmatchcase(name, "model*.safetensors")]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _described(record: FisherRecord | SubspaceRecord) -> dict[str, Any]:
    left_out = {"model_hash", "data_fingerprint"}
    if isinstance(record, FisherRecord) and record.kind != "optimizer":
        left_out |= {"batch_tokens", "max_grad_norm"}
    return {name: value for name, value in dataclasses.asdict(record).items() if name not in left_out}


@dataclass(frozen=True, kw_only=True)
class KeptOptimizer:
    """The optimizer that trained a model, as it was with these weights."""

    path: Path
    """Its state, or the folder of the checkpoint that has it."""

    batch_tokens: int
    """Tokens of a step."""

    max_grad_norm: float | None = None
    """To what it clipped the gradient's norm; None where that is not known."""

    gradient_norms: Mapping[int, float] | None = None
    """Norms before clipping by step; None takes what lies beside the state."""


@dataclass(frozen=True, kw_only=True)
class _Estimator:
    """The two estimates of one model, with what they cost."""

    checkpoint: Path
    model_hash: str
    phi: PhiConfig
    corpus: Corpus
    span: range
    flops_per_token: float
    state: PartialState
    optimizer: KeptOptimizer | None

    @cached_property
    def model(self) -> PreTrainedModel:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self.checkpoint, dtype=torch.float32)
        return model.to(self.state.device)

    def fisher(self) -> tuple[dict[str, torch.Tensor], FisherRecord, float]:
        options = self.phi.fisher
        kind = options.kind
        if kind == "optimizer":
            return self._fisher_from_optimizer()
        assert kind != "ones", "nothing is estimated for it"
        count, rows = self._last(options.sequences)

        def estimate(size: int) -> dict[str, torch.Tensor]:
            return estimate_fisher(
                self.model,
                _batches(rows, size),
                kind=kind,
                definition=options.definition,
                reduce=self._is_distributed,
                progress=self.state.is_main_process,
            )

        with float32_products(tf32=True):  # it samples the data, beside which such rounding is nothing
            fisher = with_fewer(estimate, self._at_once)
        tokens = count * self.corpus.context
        flops = fisher_flops(
            tokens=tokens,
            sequences=count,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            training_flops_per_token=self.flops_per_token,
        )
        return fisher, FisherRecord(kind=kind, definition=options.definition, **self._made_of(count)), flops

    def _fisher_from_optimizer(self) -> tuple[dict[str, torch.Tensor], FisherRecord, float]:
        kept, context = self.optimizer, self.corpus.context
        if kept is None:
            raise ValueError(
                "phi.fisher.kind: optimizer: the model was trained elsewhere; name its state in phi.fisher.optimizer"
                " and the tokens of its steps in phi.fisher.batch_tokens, or take empirical"
            )
        model, blocks = meta_model(AutoConfig.from_pretrained(self.checkpoint)), kept.batch_tokens // context
        targets = blocks * (context - 1)
        # Of a model whose `loss_type` Trainer does not know, such as GPT-2, it divides the loss by the first label of
        # each block too: https://github.com/huggingface/transformers, Trainer._loss_shifts_labels.
        counted = targets if LOSS_MAPPING.get(model.loss_type) is ForCausalLMLoss else blocks * context
        fisher = fisher_from_optimizer(
            kept.path,
            model,
            batch_tokens=counted**2 / targets,
            max_grad_norm=kept.max_grad_norm,
            gradient_norms=kept.gradient_norms,
        )
        record = FisherRecord(
            kind="optimizer",
            definition="sequence",
            batch_tokens=targets,
            max_grad_norm=kept.max_grad_norm,
            **self._made_of(0),
        )
        return fisher, record, 0.0

    def subspace(self) -> tuple[dict[str, torch.Tensor], SubspaceRecord, float]:
        options = self.phi.subspace
        reads_data = options.source != "weights"
        count, rows = self._last(options.sequences if reads_data else 0)

        def learn(size: int) -> dict[str, torch.Tensor]:
            return learn_subspace(
                self.model,
                _batches(rows, size) if reads_data else None,
                source=options.source,
                energy=options.energy,
                reduce=reads_data and self._is_distributed,
                progress=self.state.is_main_process,
            )

        bases = with_fewer(learn, self._at_once)
        tokens = count * self.corpus.context
        flops = subspace_flops(
            self.model, source=options.source, tokens=tokens, training_flops_per_token=self.flops_per_token
        )
        return bases, SubspaceRecord(source=options.source, energy=options.energy, **self._made_of(count)), flops

    def _made_of(self, count: int) -> dict[str, Any]:
        identity = {"model_hash": self.model_hash, "data_fingerprint": self.corpus.fingerprint}
        return {"sequences": count, "tokens": count * self.corpus.context, **identity}

    @property
    def _is_distributed(self) -> bool:
        return bool(self.state.num_processes > 1)

    @property
    def _at_once(self) -> int:
        size, context = self.phi.fisher.batch_size, self.corpus.context
        return sequences_that_fit(self.model, context, on_cpu=size, gradients=True)

    def _last(self, wanted: int) -> tuple[int, list[torch.Tensor]]:
        # The number of blocks over all processes, and this process's share of them, token ids (T,) each.
        count = min(wanted, len(self.span))
        blocks = rung_blocks(self.corpus, self.span.stop - count, count)
        rows = [blocks[i]["input_ids"] for i in range(count)]
        return count, rows[self.state.process_index :: self.state.num_processes]


def _batches(rows: Sequence[torch.Tensor], size: int) -> list[torch.Tensor]:
    # Token ids (B, T) of at most `size` sequences each.
    return [torch.stack([*rows[i : i + size]]) for i in range(0, len(rows), size)]
