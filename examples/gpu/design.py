"""Which study fits: its models, seeds and budgets, from the time and from the speed that was measured before."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from part_file import read_json

from hf_progressive.config import StudyConfig, strict_yaml

VOCABULARY, CONTEXT, TOKENS_PER_PARAMETER = 8192, 512, 12
BATCH_TOKENS, MICRO_BATCH = 32_768, 64
HEAD_DIM = 64
SHAPES = (
    (8, 128), (8, 192), (8, 256), (12, 256), (8, 320), (12, 320), (12, 384), (16, 384), (12, 448),
    (16, 448), (16, 512),
)  # fmt: skip
"""Layers and width of the last rung."""

STAGES, DEEP_STAGES, DEEP = ((4, 0.3), (2, 0.6)), ((8, 0.2), (4, 0.4), (2, 0.6)), 16
"""What the layers are divided by in a stage, and the share of the tokens until which it trains; of as many layers as
`DEEP` a trunk begins with an eighth, which saved most of what was tried (docs/evidence.md)."""

COLD_FRACTIONS = (0.5, 0.7, 0.85, 1.0)

FEWEST_SEEDS, MOST_SEEDS = 3, 12
WORKERS = 4  # processes that share the device: while one compiles, loads or saves, the others train
STARTING_SECONDS = 45.0  # imports, the first compilation, the corpus
TASK_SECONDS = 8.0  # of a run besides its training: loading, compiling from the cache, evaluating, saving
SPEED_OF_SMALL = 0.15  # of the utilisation measured on larger models: a guess that leaves time for every seed
UNMEASURED_MFU = 0.07
MARGIN = 0.8  # of the time to count on
LONG = 1500.0  # seconds from which on three rates are tried on each side
DECAY, REWARM = 0.4, 0.01
RATE, RATE_WIDTH = 6e-3, 64
"""The peak rate at a width, the best of those tried on models of 0.47 M parameters; it falls with the width's root."""

RATES = (0.6, 1.0, 1.6)
"""The rates that are tried where there is time, over the one by the rule."""

STACKED, EXACT = "stacked", "exact, moments grown"


@dataclass(frozen=True, kw_only=True)
class Design:
    """A study and why it is this one."""

    config: StudyConfig
    """The study with its fewest seeds and the first recipe alone."""

    extensions: tuple[StudyConfig, ...] = ()
    """The same with the second recipe, and then with as many seeds as there may be time for."""

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
        extensions = tuple(_uncompiled(config) for config in self.extensions)
        return dataclasses.replace(self, config=_uncompiled(self.config), extensions=extensions)


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
        config = study_config(data, (4, 32), seeds=1, toy=True)
        return Design(config=config, workers=1, reasons={"rehearsal": True})
    speed, source = measured_flops(results)
    if speed == 0.0 and peak is not None:
        speed, source = peak * UNMEASURED_MFU, f"{UNMEASURED_MFU} of the device's peak, as nothing was measured"
    workers = max(1, min(WORKERS, cpus // 3))
    sweep = seconds >= LONG
    estimates = []
    chosen = SHAPES[0]
    for shape in SHAPES:
        needed = seconds_for(shape, speed, workers, sweep=sweep)
        estimates.append({"layers": shape[0], "width": shape[1], "seconds": round(needed, 1)})
        if needed <= MARGIN * (seconds - STARTING_SECONDS):
            chosen = shape
    reasons = {
        "seconds": seconds, "flops_per_second": speed, "from": source, "workers": workers, "estimates": estimates,
        "chosen": {"layers": chosen[0], "width": chosen[1]}, "learning_rate": peak_rate(chosen[1]),
        "rates_tried": sweep,
    }  # fmt: skip
    return Design(
        config=study_config(data, chosen, seeds=FEWEST_SEEDS, sweep=sweep),
        extensions=tuple(
            study_config(data, chosen, seeds=seeds, sweep=sweep, second=True) for seeds in (FEWEST_SEEDS, MOST_SEEDS)
        ),
        workers=workers,
        reasons=reasons,
    )


def seconds_for(shape: tuple[int, int], speed: float, workers: int, *, sweep: bool) -> float:
    """Estimate the seconds of the fewest seeds: the device's own time, and what every task adds, shared by all."""
    if speed <= 0:
        return float("inf")
    layers, width = shape
    tokens = training_tokens(layers, width)
    stages = stages_of(layers)
    per_token = [flops_per_token(layers // part, width) for part, _ in stages]
    ends = [until for _, until in stages]
    lengths = [end - before for end, before in zip(ends, [0.0, *ends], strict=False)]
    whole = tokens * flops_per_token(layers, width)
    trunk = tokens * sum(share * flops for share, flops in zip(lengths, per_token, strict=True))
    trunk += (1 - ends[-1]) * whole
    scratch = whole * (1 + DECAY * sum(COLD_FRACTIONS[:-1]))
    rounds = FEWEST_SEEDS + (len(RATES) - 1 if sweep else 0)
    tasks = len(COLD_FRACTIONS) + 1 + 2 * (len(stages) + 1)
    return rounds * ((scratch + trunk) / speed + tasks * TASK_SECONDS / workers)


def stages_of(layers: int) -> tuple[tuple[int, float], ...]:
    """Return the stages of a trunk that ends with so many layers."""
    return DEEP_STAGES if layers >= DEEP else STAGES


def peak_rate(width: int) -> float:
    """Return the peak learning rate for a width, to three digits."""
    return float(f"{RATE * (RATE_WIDTH / width) ** 0.5:.3g}")


def training_tokens(layers: int, width: int) -> float:
    """Return the tokens of a model's whole budget."""
    return TOKENS_PER_PARAMETER * parameters(layers, width)


def parameters(layers: int, width: int) -> float:
    """Return a model's parameters, to a few per cent."""
    return layers * (4 * width**2 + 3 * width * mlp_width(width)) + VOCABULARY * width


def flops_per_token(layers: int, width: int) -> float:
    """Return a model's training FLOPs per token, to a few per cent."""
    return 6 * parameters(layers, width) + 12 * layers * width * CONTEXT


def mlp_width(width: int) -> int:
    """Return 8/3 of a width in whole tiles."""
    return -(-8 * width // (3 * 64)) * 64


def study_config(
    data: dict[str, Any], shape: tuple[int, int], *, seeds: int, sweep: bool = False, second: bool = False,
    toy: bool = False,
) -> StudyConfig:  # fmt: skip
    """Build the study: a trunk that grows by stacking, and second, one that grows exactly and keeps Adam's moments."""
    layers, width = shape
    rate = peak_rate(width)
    end = _rung(layers, width, toy=toy)
    stages = [{**_rung(layers // part, width, toy=toy), "until": until} for part, until in stages_of(layers)]
    training: dict[str, Any] = {
        "tokens_per_parameter": 0.3 if toy else TOKENS_PER_PARAMETER,
        "batch_tokens": 512 if toy else BATCH_TOKENS,
        "micro_batch_size": 8 if toy else MICRO_BATCH,
        "learning_rate": rate,
        "warmup_fraction": 0.02,
        "decay_fraction": DECAY,
        "evaluations": 1,
        "checkpoints": 1,
    }
    if not toy:
        training["arguments"] = {"dataloader_num_workers": 1}
    recipes = [
        {"name": STACKED, "trunk": stages, "set": {"growth.method": "stack", "trunk.rewarm_fraction": REWARM}},
        {
            "name": EXACT,
            "trunk": stages,
            "set": {"trunk.moments": "grown", "trunk.rewarm": "new", "trunk.rewarm_fraction": REWARM},
        },
    ]
    mapping = {
        "name": "gpu",
        "ladder": {
            "name": "gpu",
            "model": {
                "family": "llama",
                "context": 64 if toy else CONTEXT,
                "fields": {"tie_word_embeddings": True},
            },
            "rungs": [end],
            "cold": "none",
            "data": data,
            "training": training,
        },
        "seeds": list(range(seeds)),
        "cold_fractions": list(COLD_FRACTIONS),
        "child_fractions": [1.0],
        "recipes": recipes if second or toy else recipes[:1],
        "headline": STACKED,
        "learning_rates": {"rates": [round(rate * factor, 6) for factor in RATES]} if sweep else {},
    }
    return strict_yaml.build(StudyConfig, mapping)


def _rung(layers: int, width: int, *, toy: bool) -> dict[str, Any]:
    heads = width // (8 if toy else HEAD_DIM)
    return {
        "name": f"l{layers}w{width}", "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads,
        "num_key_value_heads": heads, "intermediate_size": mlp_width(width),
    }  # fmt: skip
