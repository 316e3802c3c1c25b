"""Time the Fisher estimate against a plain forward and backward pass over the same tokens.

Three ways take turns in one process: plain training passes, the batched estimate, and one backward pass per sequence.
Every repetition gives one ratio to the plain pass beside it; the median is reported. The last line on stdout is JSON.

    python examples/benchmarks/bench_fisher.py --repetitions 7 --threads 2
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, Qwen3Config

from hf_progressive.estimation.fisher import estimate_fisher

NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None}
MODELS: dict[str, PretrainedConfig] = {
    "gpt2-4x128": GPT2Config(n_layer=4, n_embd=128, n_head=2, vocab_size=4096, **NO_SPECIAL_TOKENS),
    "gpt2-6x384": GPT2Config(n_layer=6, n_embd=384, n_head=6, vocab_size=8192, **NO_SPECIAL_TOKENS),
    "gpt2-8x512": GPT2Config(n_layer=8, n_embd=512, n_head=8, vocab_size=16384, **NO_SPECIAL_TOKENS),
    "llama-6x384": LlamaConfig(
        num_hidden_layers=6,
        hidden_size=384,
        intermediate_size=1024,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=8192,
        **NO_SPECIAL_TOKENS,
    ),
    "qwen3-4x256": Qwen3Config(
        num_hidden_layers=4,
        hidden_size=256,
        intermediate_size=768,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=8192,
        **NO_SPECIAL_TOKENS,
    ),
}


def plain_passes(model: nn.Module, batches: list[Tensor]) -> None:
    """Do what training does up to the optimizer."""
    for ids in batches:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)


def seconds(clock, function, *arguments, **options) -> float:
    """Run once and return the time by a clock."""
    start = clock()
    function(*arguments, **options)
    return clock() - start


def measure(
    config: PretrainedConfig, *, batch: int, length: int, batches: int, repetitions: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Time the variants on one model."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    data = list(torch.randint(config.vocab_size, (batches, batch, length)))
    plain_passes(model, data[:1])
    estimate_fisher(model, data[:1])
    times: dict[str, list[float]] = {"plain": [], "batched": [], "loop": []}
    for _ in range(repetitions):
        times["plain"].append(seconds(clock, plain_passes, model, data))
        times["batched"].append(seconds(clock, estimate_fisher, model, data))
        times["loop"].append(seconds(clock, estimate_fisher, model, data, batched=False))
    ratios = {
        variant: statistics.median(t / p for t, p in zip(times[variant], times["plain"], strict=True))
        for variant in ("batched", "loop")
    }
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "plain_seconds": round(statistics.median(times["plain"]), 4),
        "batched_over_plain": round(ratios["batched"], 3),
        "loop_over_plain": round(ratios["loop"], 3),
    }


def main() -> None:
    """Print one line per model on stderr and all results as JSON on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--batch", type=int, default=8, help="sequences per batch")
    parser.add_argument("--length", type=int, default=256, help="tokens per sequence")
    parser.add_argument("--batches", type=int, default=2, help="batches per measurement")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, for a machine that is busy")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(options.threads)
    setting = {"batch": options.batch, "length": options.length, "batches": options.batches}
    results = {}
    for name in options.models:
        results[name] = measure(MODELS[name], **setting, repetitions=options.repetitions, clock=clock)
        print(f"{name}: {results[name]}", file=sys.stderr)
    worst = max(result["batched_over_plain"] for result in results.values())
    print(
        json.dumps(
            {
                "setting": setting | {"threads": options.threads, "clock": clock.__name__},
                "models": results,
                "worst_ratio": worst,
            }
        )
    )


if __name__ == "__main__":
    main()
