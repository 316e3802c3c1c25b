"""What a ladder computes beside training: validation, estimates for Φ, CORE.

None of it is in the FLOPs that η and savings compare, but for the estimates. All of it takes time on the accelerators,
so that a plan prices it and a record states it.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from hf_progressive.config import CoreConfig, LadderConfig, PhiConfig
from hf_progressive.estimation.fisher import fisher_flops
from hf_progressive.estimation.subspace import subspace_flops
from hf_progressive.evaluation.core.bundle import Task, load_bundle
from hf_progressive.evaluation.core.prompts import build_requests, common_prefix, draw_examples
from hf_progressive.planning.ladder_plan import RungPlan
from hf_progressive.training.flops import FORWARD_SHARE, meta_model

_BYTES_PER_TOKEN = 4  # English text under vocabularies of 10,000 to 100,000: 3.5 to 4.7
_SAMPLED_EXAMPLES = 32  # per task of CORE, whose lengths stand for all of its examples'


def validation(config: LadderConfig, rung: RungPlan, *, steps: int) -> tuple[int, int, float]:
    """Count the validation of a run of so many steps; 0 for a model trained elsewhere, which is measured once.

    Returns:
        How often the validation part is read: before the first step, along the run, and for an average once more.
        Tokens read over all of these points, if that part is as large as the configuration lets it be. FLOPs of these
        forward passes.
    """
    context = config.model.context
    points = 1 + min(steps, config.training_of(rung.name).evaluations)
    if rung.trunk is not None and rung.trunk.averaged_steps and steps == rung.steps:
        points += 1
    tokens = points * (config.data.max_validation_tokens // context * context)
    return points, tokens, tokens * rung.size.flops_per_token * FORWARD_SHARE


def estimate_flops(phi: PhiConfig, rung: RungPlan, context: int) -> dict[str, float]:
    """Count the FLOPs of what is estimated of a trained rung for its successor's Φ.

    The last rung's estimates are made too: a later ladder may go on from it.

    Returns:
        FLOPs by `fisher` and `subspace`; 0 for a term that is off.
    """
    per_token = rung.size.flops_per_token
    blocks = rung.tokens // context or phi.most_sequences  # what the rung read, where that is known
    flops = {"fisher": 0.0, "subspace": 0.0}
    if phi.estimates_fisher and not phi.reads_optimizer:
        sequences = min(phi.fisher.sequences, blocks)
        flops["fisher"] = fisher_flops(
            tokens=sequences * context,
            sequences=sequences,
            parameters=rung.parameters.total,
            training_flops_per_token=per_token,
        )
    if phi.gamma > 0:
        source = phi.subspace.source
        sequences = 0 if source == "weights" else min(phi.subspace.sequences, blocks)
        flops["subspace"] = subspace_flops(
            meta_model(rung.config), source=source, tokens=sequences * context, training_flops_per_token=per_token
        )
    return flops


@cache
def core_tokens(core: CoreConfig, context: int) -> int:
    """Estimate the tokens that a model reads when it is evaluated on CORE.

    Prompts are made as they will be asked, from a sample of each task's examples, with what options share read once.
    Their bytes stand for tokens, four to one, because the tokenizer may not be trained yet.
    """
    tasks = load_bundle(core.bundle).select(core.tasks or None)
    return round(sum(_task_bytes(task, core.max_per_task, context) for task in tasks) / _BYTES_PER_TOKEN)


def _task_bytes(task: Task, limit: int | None, context: int) -> float:
    examples = draw_examples(task, limit)
    sample = range(0, len(examples), -(-len(examples) // _SAMPLED_EXAMPLES))
    requests = build_requests(task, examples, sample, _ByteTokenizer(), context * _BYTES_PER_TOKEN)
    read = 0
    for request in requests:
        shared = common_prefix([row.tokens for row in request.rows])
        read += shared + sum(len(row.tokens) - shared for row in request.rows)
    return read / len(sample) * len(examples)


class _ByteTokenizer:
    """A tokenizer whose tokens are the bytes of a text."""

    bos_token_id = 0

    def __call__(self, texts: Sequence[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(text.encode()) for text in texts]}
