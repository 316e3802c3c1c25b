"""What in a ladder's settings contradicts the rest, or asks for what is not here: all of it, before any compute."""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from hf_progressive.config import (
    CoreConfig,
    DataConfig,
    LadderConfig,
    ModelConfig,
    RungConfig,
    TokenizerConfig,
    TrunkConfig,
    strict_yaml,
)
from hf_progressive.config.checks import require_config
from hf_progressive.config.ranges import with_article
from hf_progressive.data import load_tokenizer, token_byte_lengths, vocabulary_size
from hf_progressive.evaluation.core.bundle import load_bundle
from hf_progressive.growth.methods import method_named
from hf_progressive.growth.options import GrowthOptions
from hf_progressive.planning.argument_values import check_argument_value
from hf_progressive.planning.without_effect import keys_without_effect
from hf_progressive.records.origin import Origin, locate_origin
from hf_progressive.training.arguments import check_arguments
from hf_progressive.training.muon import NEEDS_MATRICES
from hf_progressive.training.precision import DIVIDING_ENGINES
from hf_progressive.training.training_run import micro_batches

_POINTS = "the ladder evaluates, saves and logs at points of its own (training.evaluations, training.checkpoints)"
_SET_ELSEWHERE = {
    **dict.fromkeys(("eval_steps", "eval_delay", "save_steps", "logging_steps", "logging_first_step"), _POINTS),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), _POINTS),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), _POINTS),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), "validation computes as training does (training.precision)"),
    "dataloader_drop_last": "validation would leave out the blocks that fill no whole batch",
    "enable_jit_checkpoint": "a run that is told to stop saves a checkpoint anyway",
    "auto_find_batch_size": "it would change the batch under way; lower training.micro_batch_size",
    "label_smoothing_factor": "bits per byte would be those of the smoothed loss",
    "save_only_model": "a run that was stopped could not go on with the same bits",
    "ignore_data_skip": "a run that was stopped would read its first blocks again",
    "push_to_hub": "the key `publish` publishes finished rungs",
}
"""Arguments that would undo what a ladder does, and why."""

_PACKAGES = {
    "deepspeed": "deepspeed",
    "use_liger_kernel": "liger_kernel",
    "trackio_space_id": "trackio",
}
"""Arguments that need a package."""

_OPTIMIZER_PACKAGES = {
    "torch_4bit": "torchao", "torch_8bit": "torchao", "galore": "galore_torch", "lomo": "lomo_optim",
    "grokadamw": "grokadamw", "bnb": "bitsandbytes", "8bit": "bitsandbytes", "schedule_free": "schedulefree",
    "apollo": "apollo_torch", "anyprecision": "torchdistx", "stable_adamw": "optimi", "ademamix": "bitsandbytes",
    "lion": "bitsandbytes", "paged": "bitsandbytes",
}  # fmt: skip
"""Parts of an optimizer's name, and the package that it is in."""

_GROWING = ("adamw_torch", "adamw_torch_fused")
"""Optimizers whose state grows."""

_EXTRAS = {"tensorboard": "hf-progressive[tensorboard]", "deepspeed": "hf-progressive[deepspeed]"}
"""What to install for packages that are extras of this one."""


def find_problems(config: LadderConfig, processes: int | None = None) -> list[str]:
    """Look for settings that contradict one another, and for what they name and this machine lacks.

    Each is a line: the key, its value, and what would be right. Without the number of processes, it is not asked
    whether a step divides among them.
    """
    require_config(config, LadderConfig, "load_ladder_config")
    problems = [
        *keys_without_effect(config),
        *_muon_problems(config),
        *_fisher_problems(config),
        *_trainable_problems(config),
    ]
    for rung in config.rungs:
        training, growth = config.training_of(rung.name), config.growth_of(rung.name)
        arguments = training.arguments
        problems += [*_argument_problems(arguments), *_contradictions(arguments), *_missing_packages(arguments)]
        if processes is not None:
            problems += _of(partial(micro_batches, training, config.model.context, processes))
        problems += [f"growth.method: {problem}" for problem in _of(partial(method_named, growth.method))]
        problems += _of(partial(_check_growth_options, growth.options))
        if config.schedule == "trunk":
            problems += _trunk_problems(config.trunk, arguments)
    problems += _data_problems(config.data, config.model.context)
    if config.core is not None:
        problems += [f"core: {problem}" for problem in _of(partial(_require_bundle, config.core))]
    return list(dict.fromkeys(problems))  # rungs share what the ladder says


def _trainable_problems(config: LadderConfig) -> Iterator[str]:
    for parent, child in zip(config.rungs[1:], config.rungs[2:], strict=False):
        chosen = config.training_of(parent.name).trainable
        if chosen != "all" and config.phi_of(child.name).reads_optimizer:
            yield frozen_without_moment(parent.name, child.name)
    for rung in config.rungs[1:]:
        training, phi = config.training_of(rung.name), config.phi_of(rung.name)
        chosen = training.trainable
        if chosen == "all":
            continue
        if chosen in ("new_layers", "new_entries") and phi.ewc_lambda > 0:
            yield (
                f"training.trainable: {chosen} trains only what {rung.name}'s parent has not, of which Ω is 0, so that"
                " phi.ewc_lambda is without effect; set that to 0"
            )
        if config.schedule == "trunk" and config.trunk.moments == "grown":
            yield "trunk.moments: grown moments need training.trainable all, or what is frozen has none; take fresh"
        engine = _engine_of_its_own(training.arguments)
        if chosen == "new_entries" and engine is not None:
            yield (
                f"training.trainable: new_entries does not work with {engine}, which takes the optimizer's step; take"
                " new_layers, or FSDP2"
            )


def frozen_without_moment(parent: str, child: str) -> str:
    """Say why the Fisher information of a rung that trained in part cannot be read from its optimizer."""
    return (
        f"phi.fisher.kind: optimizer has no Ω of what training.trainable froze in {parent}, which {child} grows from;"
        " take empirical, or train all"
    )


def _trunk_problems(trunk: TrunkConfig, arguments: Mapping[str, Any]) -> Iterator[str]:
    engine = _engine_of_its_own(arguments)
    wanted = []
    if trunk.rewarm == "new":
        wanted.append(
            ("rewarm", "new", "all", "takes the optimizer's step, which the new entries' rate is a share of")
        )
    if trunk.moments == "grown":
        wanted.append(("moments", "grown", "fresh", "keeps the optimizer's state in a form of its own"))
    for key, value, other, reason in wanted:
        if engine is not None:
            yield f"trunk.{key}: {value} does not work with {engine}, which {reason}; take {other}, or FSDP2"
    optimizer = arguments.get("optim")
    if trunk.moments == "grown" and isinstance(optimizer, str) and optimizer not in _GROWING:
        yield (
            f"trunk.moments: only the state of torch's AdamW grows, not that of training.arguments.optim {optimizer};"
            f" take fresh"
        )


def _of(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except (ValueError, OSError) as error:
        return [str(error)]
    return []


def _argument_problems(arguments: Mapping[str, Any]) -> Iterator[str]:
    for name, value in arguments.items():
        if name in _SET_ELSEWHERE:
            if value not in (False, 0, None):
                yield f"training.arguments.{name}: {_SET_ELSEWHERE[name]}; leave it out"
            continue
        refused = _of(partial(check_arguments, {name: value}))
        yield from refused or _of(partial(check_argument_value, name, value))


def _contradictions(arguments: Mapping[str, Any]) -> Iterator[str]:
    def given(name: str) -> bool:
        return arguments.get(name) not in (None, False, 0, "", [], {})

    for one, other in (("bf16", "fp16"), ("deepspeed", "fsdp")):
        if given(one) and given(other):
            yield f"training.arguments: {one} and {other} exclude each other; leave one out"
    if not given("dataloader_num_workers"):
        for name in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
            if given(name):
                yield f"training.arguments.{name}: needs dataloader_num_workers above 0; set that, or leave it out"
    accelerator = arguments.get("accelerator_config")
    if isinstance(accelerator, Mapping) and accelerator.get("split_batches"):
        yield (
            "training.arguments.accelerator_config.split_batches: training.batch_tokens is divided among the processes"
            " already; leave it out"
        )


def _missing_packages(arguments: Mapping[str, Any]) -> Iterator[str]:
    for name, package in _PACKAGES.items():
        if arguments.get(name) and find_spec(package) is None:
            yield f"training.arguments.{name}: needs {package}, which is not installed; {_install(package)}"
    optimizer = arguments.get("optim")
    if isinstance(optimizer, str):
        needed = next((package for part, package in _OPTIMIZER_PACKAGES.items() if part in optimizer), None)
        if needed is not None and find_spec(needed) is None:
            yield f"training.arguments.optim: {optimizer} needs {needed}, which is not installed; {_install(needed)}"
    reports = arguments.get("report_to")
    available = get_available_reporting_integrations()
    for name in [reports] if isinstance(reports, str) else reports or ():
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            nearest = strict_yaml.nearest(str(name), INTEGRATION_TO_CALLBACK)
            yield f"training.arguments.report_to: {name!r} is unknown; {nearest}"
        elif name not in available:
            yield (
                f"training.arguments.report_to: {name} is not installed; {_install(name)}, or report to none"
                f" (--set training.arguments.report_to=none)"
            )


def _muon_problems(config: LadderConfig) -> Iterator[str]:
    optimizers = {rung.name: config.training_of(rung.name).optimizer for rung in config.rungs}
    if "muon" not in optimizers.values():
        return
    trained = [config.training_of(name).arguments for name, optimizer in optimizers.items() if optimizer == "muon"]
    if any(_engine_of_its_own(arguments) is not None for arguments in trained):
        yield f"training.optimizer: {NEEDS_MATRICES}"
    if config.schedule == "trunk" and config.trunk.moments == "grown" and len(set(optimizers.values())) > 1:
        named = ", ".join(f"{name} {optimizer}" for name, optimizer in optimizers.items())
        yield f"trunk.moments: grown moments need one training.optimizer on all rungs, not {named}; take fresh ones"


def _fisher_problems(config: LadderConfig) -> Iterator[str]:
    # A rung's optimizer is read for the next rung's Φ; the last one's for what a later ladder makes of it.
    for index, rung in enumerate(config.rungs):
        after = config.rungs[index + 1 :]
        phi = config.phi_of(after[0].name) if after else config.phi
        if not phi.reads_optimizer or rung.source is not None:
            continue
        training = config.training_of(rung.name)
        engine, optimizer = _engine_of_its_own(training.arguments), training.arguments.get("optim")
        if engine is not None:
            yield f"phi.fisher.kind: optimizer does not work with {engine}, which keeps its state in a form of its own"
        if training.optimizer == "muon":
            yield (
                "phi.fisher.kind: optimizer reads second moments, and Muon keeps none of the matrices in the layers;"
                " take empirical, or training.optimizer adamw"
            )
        elif isinstance(optimizer, str) and optimizer not in _GROWING:
            yield (
                f"phi.fisher.kind: optimizer reads torch's AdamW, not training.arguments.optim {optimizer}; take"
                f" empirical"
            )


def _engine_of_its_own(arguments: Mapping[str, Any]) -> str | None:
    # DeepSpeed, or the first FSDP with its flat parameters, where one is asked for.
    by_deepspeed, by_fsdp = (os.environ.get(name, "false").lower() in ("true", "1") for name in DIVIDING_ENGINES)
    if by_deepspeed or arguments.get("deepspeed"):
        return "DeepSpeed"
    stated = arguments.get("fsdp_config")
    version = stated.get("version", 2) if isinstance(stated, Mapping) else 2
    if by_fsdp:
        version = os.environ.get("FSDP_VERSION", "1")
    return "FSDP1" if (by_fsdp or arguments.get("fsdp")) and str(version) == "1" else None


def _install(package: str) -> str:
    return f"pip install '{_EXTRAS.get(package, package.replace('_', '-'))}'"


def _check_growth_options(options: Mapping[str, Any]) -> None:
    try:
        GrowthOptions.of(options)
    except ValueError as error:
        raise ValueError(f"growth.options.{error}") from error


def _data_problems(data: DataConfig, context: int) -> Iterator[str]:
    if data.max_validation_tokens < context:
        yield f"data.max_validation_tokens: {data.max_validation_tokens} is less than one block of {context}; raise it"
    tokenizer = data.tokenizer
    if tokenizer.name is not None:
        return
    files = [Path(file) for file in data.files]
    # Each entry beyond the bytes joins two that stand side by side: fewer bytes than entries can never do.
    limits = {"data.tokenizer.training_bytes": tokenizer.training_bytes}
    readable = data.source in ("text", "json") and all(file.suffix in (".txt", ".json", ".jsonl") for file in files)
    if readable and all(file.is_file() for file in files):
        limits["data.files"] = sum(file.stat().st_size for file in files)
        if files and not limits["data.files"]:
            yield f"data.files: {', '.join(map(str, files))} holds nothing, not a byte; name files that hold texts"
            return
    for key, size in limits.items():
        if size < tokenizer.vocab_size - 256:
            yield (
                f"data.tokenizer.vocab_size: {tokenizer.vocab_size} entries cannot come of {key}'s {size} bytes; lower"
                f" it, or give more text"
            )


@cache  # not of an error, which may be mended meanwhile
def _require_bundle(core: CoreConfig) -> None:
    load_bundle(core.bundle).select(core.tasks or None)


def find_origin(
    first: RungConfig, model: ModelConfig, tokenizer: TokenizerConfig, taken: Path | None = None
) -> Origin | None:
    """Find the model trained elsewhere that a ladder begins with, perhaps without its weights, and check that it fits.

    Nothing is fetched, nor checked, if the run has `taken` it already. None for a ladder that trains all of its rungs.
    """
    if first.source is None:
        return None
    try:
        if taken is not None:
            return locate_origin(str(taken), weights=False)
        origin = locate_origin(first.source, first.revision, weights=False)
        _check_architecture(origin, model)
        _check_tokenizer(origin, tokenizer)
    except (OSError, ValueError) as error:
        raise type(error)(f"rung {first.name}: {error}") from None
    return origin


def _check_architecture(origin: Origin, model: ModelConfig) -> None:
    config = origin.read_config()
    if config.model_type != model.family:
        found = with_article(config.model_type)
        raise ValueError(f"{origin} is {found}, model.family is {model.family!r}; set it to that")
    positions = config.max_position_embeddings
    if model.context > positions:
        raise ValueError(
            f"{origin} reads {positions} tokens, model.context is {model.context}; lower it to {positions}"
        )


def _check_tokenizer(origin: Origin, named: TokenizerConfig) -> None:
    own = origin.read_tokenizer()
    if named.name is None and own is None:
        raise ValueError(f"{origin} has no tokenizer; name the one it was trained with in data.tokenizer.name")
    tokenizer = own if named.name is None else load_tokenizer(named, ())
    if named.name is None:
        token_byte_lengths(tokenizer)  # refuses one that loses text
    if own is not None and own.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"{origin} has another tokenizer than data.tokenizer.name {named.name!r}; leave that out to take the"
            f" rung's own"
        )
    needed, rows = vocabulary_size(tokenizer), origin.read_config().vocab_size
    if needed > rows:
        raise ValueError(
            f"{origin} has a vocabulary of {rows}, the tokenizer needs {needed}; grow it first:"
            f" hf-progressive grow SRC OUT --set vocab_size={needed}"
        )
