"""Which study fits: its models, seeds and budgets, from the time and from the speed that was measured before."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from part_file import read_json

from hf_progressive.config import StudyConfig, TrainingConfig, strict_yaml

VOCABULARY, CONTEXT, TOKENS_PER_PARAMETER = 8192, 512, 12
BATCH_TOKENS, MICRO_BATCH = 32_768, 64
HEAD_DIM = 64
SHAPES = (
    (3, 128), (4, 128), (3, 192), (4, 192), (5, 192), (4, 256), (5, 256), (6, 256), (5, 320), (6, 320), (6, 384),
    (7, 384), (7, 448), (8, 448), (8, 512),
)  # fmt: skip
"""The parent's layers and the width; the child has twice as many layers."""

FEWEST_SEEDS, MOST_SEEDS = 3, 12
WORKERS = 4  # processes that share the device: while one compiles, loads or saves, the others train
STARTING_SECONDS = 45.0  # imports, the first compilation, the corpus
TASK_SECONDS = 8.0  # of a run besides its training: loading, compiling from the cache, evaluating, saving
SPEED_OF_SMALL = 0.2  # of the utilisation measured on larger models: a guess that leaves time for every seed
UNMEASURED_MFU = 0.1
MARGIN = 0.8  # of the time to count on
SHORT = 420.0  # seconds below which two lengths of the child must do
DECAY = 0.4


@dataclass(frozen=True, kw_only=True)
class Design:
    """A study and why it is this one."""

    config: StudyConfig
    """The study with its fewest seeds."""

    extended: StudyConfig
    """The same with as many seeds as there may be time for."""

    workers: int
    """Processes to start."""

    reasons: dict[str, Any]
    """What decided, for the record."""

    @property
    def can_compile(self) -> bool:
        """Whether the models are compiled, or may be."""
        training = self.config.ladder.training
        return getattr(training, "compile", False) is not False or "torch_compile" in training.arguments

    def uncompiled(self) -> "Design":
        """Return the same study without compilation."""
        return dataclasses.replace(self, config=_uncompiled(self.config), extended=_uncompiled(self.extended))


def _uncompiled(config: StudyConfig) -> StudyConfig:
    training = config.ladder.training
    if hasattr(training, "compile"):
        training = dataclasses.replace(training, compile=False)
    kept = {key: value for key, value in training.arguments.items() if key != "torch_compile"}
    training = dataclasses.replace(training, arguments=kept)
    return dataclasses.replace(config, ladder=dataclasses.replace(config.ladder, training=training))


def measured_flops(results: Path) -> tuple[float, str]:
    """Return the FLOP/s that small models' training may be counted on to reach, and where the figure is from."""
    found: list[tuple[float, float, str]] = []
    for entry in read_json(results / "benchmark.json").get("results", []):
        ours = entry.get("recipes", {}).get("ours", {})
        if ours.get("tokens_per_second") and entry.get("flops_per_token"):
            rate = ours["tokens_per_second"] * entry["flops_per_token"]
            how = "compiled" if entry.get("compiled") else "eager"
            found.append((entry["parameters"], rate, f"benchmark, {entry['size']}, {how}"))
    for entry in read_json(results / "configuration.json").get("runs", []):
        if entry.get("tokens_per_second"):
            rate = entry["tokens_per_second"] * entry["flops_per_token"]
            found.append((entry["parameters"], rate, f"configuration, {entry['run']}"))
    if not found:
        return 0.0, "nothing measured"
    smallest = min(parameters for parameters, _, _ in found)
    _, rate, source = max((item for item in found if item[0] <= 2 * smallest), key=lambda item: item[1])
    return rate * SPEED_OF_SMALL, f"{SPEED_OF_SMALL} × {source}"


def choose(
    data: dict[str, Any], *, seconds: float, results: Path, peak: float | None, cpus: int, rehearse: bool
) -> Design:
    """Choose the largest models of which three seeds fit.

    Args:
        data: The ladder's `data` section.
        seconds: Time for the study.
        results: Folder of the parts that ran before.
        peak: FLOP/s of the device by its data sheet; None where it is unknown.
        cpus: Cores, of which every process needs some.
        rehearse: Choose toys.

    Returns:
        The study.
    """
    if rehearse:
        config = study_config(data, (1, 32), seeds=1, fractions=(0.5, 0.8), toy=True)
        return Design(config=config, extended=config, workers=1, reasons={"rehearsal": True})
    speed, source = measured_flops(results)
    if speed == 0.0 and peak is not None:
        speed, source = peak * UNMEASURED_MFU, f"{UNMEASURED_MFU} of the device's peak, as nothing was measured"
    workers = max(1, min(WORKERS, cpus // 3))
    fractions = (0.5, 0.8) if seconds < SHORT else (0.5, 0.65, 0.8)
    estimates = []
    chosen = SHAPES[0]
    for shape in SHAPES:
        needed = seconds_for(shape, speed, fractions, workers)
        estimates.append({"layers": 2 * shape[0], "width": shape[1], "seconds": round(needed, 1)})
        if needed <= MARGIN * (seconds - STARTING_SECONDS):
            chosen = shape
    reasons = {
        "seconds": seconds, "flops_per_second": speed, "from": source, "workers": workers, "estimates": estimates,
        "chosen": {"layers": 2 * chosen[0], "width": chosen[1]},
    }  # fmt: skip
    return Design(
        config=study_config(data, chosen, seeds=FEWEST_SEEDS, fractions=fractions),
        extended=study_config(data, chosen, seeds=MOST_SEEDS, fractions=fractions),
        workers=workers,
        reasons=reasons,
    )


def seconds_for(shape: tuple[int, int], speed: float, fractions: tuple[float, ...], workers: int) -> float:
    """Estimate the seconds of all seeds: the device's own time, and what every task adds, shared by the processes."""
    if speed <= 0:
        return float("inf")
    child, parent = (training_flops(layers, shape[1]) for layers in (2 * shape[0], shape[0]))
    lengths = fractions[-1] + DECAY * sum(fractions[:-1])
    tasks = 3 + len(fractions)
    return FEWEST_SEEDS * ((parent + child * (1 + lengths)) / speed + tasks * TASK_SECONDS / workers)


def training_flops(layers: int, width: int) -> float:
    """Return the FLOPs of a model's whole budget, to a few per cent."""
    parameters = layers * (4 * width**2 + 3 * width * mlp_width(width)) + VOCABULARY * width
    return TOKENS_PER_PARAMETER * parameters * (6 * parameters + 12 * layers * width * CONTEXT)


def mlp_width(width: int) -> int:
    """Return 8/3 of a width in whole tiles."""
    return -(-8 * width // (3 * 64)) * 64


def study_config(
    data: dict[str, Any], shape: tuple[int, int], *, seeds: int, fractions: tuple[float, ...], toy: bool = False
) -> StudyConfig:
    """Build the study's configuration.

    Peak rates follow 3e-3 at width 256 and fall with the root of the width. A child begins where its parent is
    trained already, and takes half the rate; on the first seed both sides are trained at another rate too.
    """
    parent, width = shape
    rate = round(3e-3 * (256 / width) ** 0.5, 5)
    head_dim = 8 if toy else HEAD_DIM
    rungs = [
        {
            "name": f"l{layers}w{width}", "num_hidden_layers": layers, "hidden_size": width,
            "num_attention_heads": width // head_dim, "num_key_value_heads": width // head_dim,
            "intermediate_size": mlp_width(width),
        }
        for layers in (parent, 2 * parent)
    ]  # fmt: skip
    training: dict[str, Any] = {
        "tokens_per_parameter": 1 if toy else TOKENS_PER_PARAMETER,
        "batch_tokens": 512 if toy else BATCH_TOKENS,
        "micro_batch_size": 8 if toy else MICRO_BATCH,
        "learning_rate": rate,
        "inherited_learning_rate": rate / 2,
        "warmup_fraction": 0.02,
        "decay_fraction": DECAY,
        "evaluations": 1,
        "checkpoints": 1,
    }
    automatic = {field.name for field in dataclasses.fields(TrainingConfig)} & {"precision", "compile"}
    if not automatic and not toy:
        training["arguments"] = {"bf16": True, "tf32": True, "torch_compile": True, "dataloader_num_workers": 1}
    mapping = {
        "name": "gpu",
        "ladder": {
            "name": "gpu",
            "model": {
                "family": "llama",
                "context": 64 if toy else CONTEXT,
                "fields": {"tie_word_embeddings": True},
            },
            "rungs": rungs,
            "cold": "none",
            "data": data,
            "training": training,
        },
        "seeds": list(range(seeds)),
        "cold_fractions": [1.0],
        "child_fractions": list(fractions),
        "recipes": [{"name": "exact", "parent_fraction": fractions[0]}],
        "headline": "exact",
        "learning_rates": {} if toy else {"cold": [2 * rate], "child": [rate], "rung": rungs[1]["name"]},
    }
    return strict_yaml.build(StudyConfig, mapping)
