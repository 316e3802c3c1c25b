"""A checkpoint in its stock class, to be measured: where it fits, in exact products, float64 kept throughout."""

import contextlib
import copy
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from accelerate.utils import parse_flag_from_env
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hf_progressive.config.ranges import shown
from hf_progressive.distributed.batching import cpu_shortage, release_memory
from hf_progressive.distributed.evaluation_mode import evaluation_mode
from hf_progressive.distributed.float32_products import float32_products
from hf_progressive.growth.divisors import unusable_value
from hf_progressive.growth.expert_pieces import PublishedTensors
from hf_progressive.growth.families import family_of
from hf_progressive.growth.fitting import counted, describe_misfit
from hf_progressive.growth.reader import CheckpointReader, is_finite
from hf_progressive.growth.source import GrowthSource, locate_source
from hf_progressive.growth.unmerged import refuse_quantized
from hf_progressive.hub.names import CONFIG_NAME
from hf_progressive.storage import ReadingFromOutside

logger = logging.getLogger(__name__)

ModelSource: TypeAlias = str | os.PathLike[str] | PreTrainedModel
"""A local folder, a Hub id or a model in memory."""

TORCH_ATTENTION = (None, "sdpa", "eager")
"""What a config may choose of attention that is at hand wherever torch is; the first leaves it to the class."""

TORCH_EXPERTS = (None, "eager", "batched_mm")
"""The same of a mixture's experts; `grouped_mm`, the default where torch has it, is an error elsewhere if named."""

_PRODUCTS = (Tensor.__matmul__, Tensor.matmul, torch.matmul)
_Found = TypeVar("_Found")


def where_it_fits(measure: Callable[[torch.device], _Found], what: str) -> _Found:
    """Measure on the accelerator if there is one, on the CPU where its memory is too small, in exact products.

    Raises:
        MemoryError: That of the CPU is too small as well.
    """
    device = accelerator()
    with float32_products(tf32=False), _shortage_told(f"to load and run {what}"):
        try:
            return measure(device)
        except torch.OutOfMemoryError:
            if device.type == "cpu":
                raise
        release_memory()
        logger.info("not enough memory for %s on %s; measuring on the CPU", what, device)
        return measure(torch.device("cpu"))


@contextlib.contextmanager
def _shortage_told(to_do_what: str = "") -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not (shortage := cpu_shortage(error)):
            raise
        remedy = "grow without the check (--no-verify, verify=False), or take a machine with more memory"
        raise MemoryError(f"{shortage} {to_do_what}; {remedy}" if to_do_what else shortage) from error


def accelerator() -> torch.device:
    """Return the device that models are measured on."""
    wants_cpu = parse_flag_from_env("ACCELERATE_USE_CPU", default=False)
    return torch.device("cuda" if torch.cuda.is_available() and not wants_cpu else "cpu")


def readable(
    source: str | os.PathLike[str], revision: str | None = None
) -> tuple[GrowthSource, Any, CheckpointReader]:
    """Find a checkpoint, its config and its weights; a ValueError if one is damaged, or they differ."""
    located = locate_source(source, revision)
    config = located.read_config()
    try:
        refuse_quantized(config, "verified")
    except ValueError as error:
        raise ValueError(f"{located.folder / CONFIG_NAME}: quantization_config: {error}") from None
    reader = CheckpointReader(located.folder)
    with _config_told(str(located.folder)):
        misfit = _misfit(config, reader)
    if misfit:
        raise ValueError(f"{reader.origin}: {misfit}")
    return located, config, reader


def load_stock(
    source: ModelSource, dtype: torch.dtype, device: torch.device, revision: str | None
) -> tuple[PreTrainedModel, torch.dtype]:
    """Return a model with its arithmetic in `dtype`, and the dtype its weights had, the shortest where they differ.

    One that is not in memory yet goes on the device.
    """
    if not isinstance(source, PreTrainedModel):
        located, config, reader = readable(source, revision)
        # The file's own, not the configuration's: "auto" would round a float32 file under a bfloat16 configuration.
        floating = [spec.dtype for spec in reader.specs.values() if spec.dtype.is_floating_point]
        stored_in = min(floating, key=lambda each: torch.finfo(each).bits, default=dtype)
        _choose_kernels(config, located.folder / CONFIG_NAME)
        with _config_told(str(located.folder)):
            model, loaded = AutoModelForCausalLM.from_pretrained(
                located.folder, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
        _require_whole(loaded, reader.origin)
        return model.to(device, dtype), stored_in
    # Some buffers, such as rotary frequencies, stay in float32 beside weights in float64.
    values = (value for value in (*source.parameters(), *source.buffers()) if value.is_floating_point())
    return source if all(value.dtype == dtype for value in values) else copy.deepcopy(source).to(dtype), source.dtype


def load_whole(place: str, dtype: torch.dtype | str) -> PreTrainedModel:
    """Return a model of a folder or of the Hub as the stock class loads it, on the CPU.

    Raises:
        ValueError: Its weights are not its config's, of which the stock class draws at random what is missing; or the
            class does not run with the config.
        OSError: There is none at that place.
    """
    with _config_told(place):
        config = AutoConfig.from_pretrained(place)
        _choose_kernels(config, place)
        model, loaded = AutoModelForCausalLM.from_pretrained(
            place, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    _require_whole(loaded, place)
    return model


# What config.json chooses is for speed, may be of an accelerator that is not at hand, and may come from the Hub by a
# client that waits long for it.
def _choose_kernels(config: Any, where: str | Path) -> None:
    chosen = config._attn_implementation
    if chosen not in TORCH_ATTENTION:
        logger.warning("%s: attention by %s runs as torch computes it, in sdpa or eager", where, shown(chosen))
    if chosen != "eager":
        config._attn_implementation = None  # sdpa, or eager where the class has no other
    config._experts_implementation = None


# By the family's table, before anything is loaded; None of a family that growth does not know.
def _misfit(config: Any, reader: CheckpointReader) -> str | None:
    try:
        family = family_of(config)
    except ValueError:
        return None
    specs = PublishedTensors(family, config, reader).specs
    return describe_misfit(family, config, {name: spec.shape for name, spec in specs.items()})


# The stock class draws at random what a file lacks, and leaves out what it does not know.
def _require_whole(loaded: Mapping[str, Any], where: str) -> None:
    faults = [f"{name} is missing" for name in sorted(loaded["missing_keys"])]
    faults += [
        f"{name} has shape {tuple(shape)}, the config says {tuple(expected)}"
        for name, shape, expected in sorted(loaded["mismatched_keys"])
    ]
    if faults:
        raise ValueError(f"{where}: {counted(faults)}")
    if unknown := sorted(loaded["unexpected_keys"]):
        logger.warning("%s: %d tensors unknown to the class are left out, %s first", where, len(unknown), unknown[0])


# Some configs are valid by themselves, and the stock class fails when it is built or run, with what comes to its mind.
@contextlib.contextmanager
def _config_told(folder: str) -> Iterator[None]:
    told = ReadingFromOutside(
        str(Path(folder, CONFIG_NAME)) if folder else "the model's config",
        "the stock class does not run with it; correct it first",
        also=(RuntimeError, NameError, ImportError, StrictDataclassError),
        passing=(torch.OutOfMemoryError, torch.AcceleratorError),
    )
    with told, _shortage_told():
        yield


class KeepFloat64(TorchFunctionMode):
    """Keep float64 tensors what they are where a model asks for float32, as stock RMS norms do inside."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch with float64 in place of float32."""
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
            kwargs = {name: torch.float64 if arg is torch.float32 else arg for name, arg in kwargs.items()}
            if func in _PRODUCTS:  # alone of the operations they do not take the wider type of the two
                args = tuple(arg.double() if isinstance(arg, Tensor) else arg for arg in args)
        return func(*args, **kwargs)


@contextlib.contextmanager
def _experts_one_by_one(model: PreTrainedModel) -> Iterator[None]:
    # The fused kernels know neither float64 nor every width.
    chosen = model.get_experts_implementation()
    if not model._can_set_experts_implementation():
        yield
        return
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(chosen)


def stock_logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the logits (length, V) of tokens (1, length) in float64; one that is not finite is a ValueError."""
    told = _config_told(model.name_or_path)
    with told, evaluation_mode(model), _experts_one_by_one(model), KeepFloat64():
        logits: Tensor = model(input_ids=tokens.to(model.device), use_cache=False).logits
    if not is_finite(logits):
        name, fault = model.name_or_path or type(model).__name__, unusable_value(model.config)
        raise ValueError(f"{name}: {fault}" if fault else f"the logits of {name} are not finite; it is damaged")
    return logits[0].double()
