"""Time an optimizer step with Φ against one without, in one process, the variants taking turns.

Variants: a plain step (forward and backward over micro-batches, clipping, AdamW); the same with `add_gradient` once
before clipping; the same with Φ written naively into every micro-batch's loss, for autograd to differentiate. Every
repetition gives one ratio to the plain step beside it; the median is reported. The last line on stdout is JSON.

    python examples/benchmarks/bench_phi.py --models gpt2-6x320 --tokens 16384
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, PretrainedConfig

from hf_progressive.estimation import learn_subspace
from hf_progressive.penalty import InheritancePenalty

NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None}
MODELS: dict[str, PretrainedConfig] = {
    "gpt2-4x128": GPT2Config(n_layer=4, n_embd=128, n_head=2, vocab_size=4096, **NO_SPECIAL_TOKENS),
    "gpt2-6x320": GPT2Config(n_layer=6, n_embd=320, n_head=5, vocab_size=8192, **NO_SPECIAL_TOKENS),
    "gpt2-8x512": GPT2Config(n_layer=8, n_embd=512, n_head=8, vocab_size=16384, **NO_SPECIAL_TOKENS),
}
EWC_LAMBDA, GAMMA = 1.0, 1e-3


class Variants:
    """The three kinds of step on one model."""

    def __init__(self, model: nn.Module, micro_batches: list[Tensor], clock: Callable[[], float]) -> None:
        self.model, self.micro_batches, self.clock = model, micro_batches, clock
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        self.anchor = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.fisher = {name: torch.rand_like(p) for name, p in self.anchor.items()}
        self.subspace = learn_subspace(model, source="weights", energy=0.95)
        penalty = InheritancePenalty(self.anchor, self.fisher, self.subspace, ewc_lambda=EWC_LAMBDA, gamma=GAMMA)
        self.penalty = penalty.bind(model)
        self.penalty_seconds: list[float] = []

    def step(self, *, with_phi: bool = False, in_loss: Callable[[], Tensor] | None = None) -> None:
        """Take an optimizer step, with Φ's gradient added before clipping or with a term in every loss."""
        for ids in self.micro_batches:
            loss = self.model(input_ids=ids, labels=ids, use_cache=False).loss
            if in_loss is not None:
                loss = loss + in_loss()
            (loss / len(self.micro_batches)).backward()
        if with_phi:
            start = self.clock()
            self.penalty.add_gradient()
            self.penalty_seconds.append(self.clock() - start)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def naive(self) -> Tensor:
        """Return Φ as anyone would write it."""
        value = torch.zeros(())
        for name, parameter in self.model.named_parameters():
            delta = parameter - self.anchor[name]
            value = value + 0.5 * EWC_LAMBDA * (self.fisher[name] * delta.square()).sum()
            if name in self.subspace:
                basis = self.subspace[name]  # GPT-2's matrices are (in, out)
                value = value + GAMMA * (delta - delta @ basis @ basis.T).square().sum()
        return value


def measure(
    config: PretrainedConfig, *, tokens: int, length: int, batch: int, repetitions: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Time the variants on one model at a number of tokens per optimizer step."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    micro_batches = list(torch.randint(config.vocab_size, (max(1, tokens // (batch * length)), batch, length)))
    variants = Variants(model, micro_batches, clock)
    assert torch.allclose(variants.naive(), variants.penalty.value())
    times: dict[str, list[float]] = {"plain": [], "phi": [], "naive": []}
    variants.step(with_phi=True)  # allocates
    variants.penalty_seconds.clear()
    for _ in range(repetitions):
        for variant, options in {"plain": {}, "phi": {"with_phi": True}, "naive": {"in_loss": variants.naive}}.items():
            start = clock()
            variants.step(**options)
            times[variant].append(clock() - start)
    plain = statistics.median(times["plain"])
    ratios = {
        variant: statistics.median(t / p for t, p in zip(times[variant], times["plain"], strict=True))
        for variant in ("phi", "naive")
    }
    parameter_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    basis_bytes = sum(basis.numel() * basis.element_size() for basis in variants.subspace.values())
    return {
        "parameters": parameter_bytes // 4,
        "tokens": tokens,
        "plain_seconds": round(plain, 4),
        "phi_seconds": round(statistics.median(variants.penalty_seconds), 4),
        "phi_over_plain": round(ratios["phi"], 4),
        "one_plus_phi_share": round(1 + statistics.median(variants.penalty_seconds) / plain, 4),
        "naive_over_plain": round(ratios["naive"], 4),
        "anchor_and_fisher_over_parameters": round((variants.penalty.held_bytes() - basis_bytes) / parameter_bytes, 3),
        "subspace_over_parameters": round(basis_bytes / parameter_bytes, 3),
    }


def main() -> None:
    """Print one line per measurement on stderr and all of them as JSON on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[2048, 16384], help="tokens per optimizer step")
    parser.add_argument("--batch", type=int, default=8, help="sequences per micro-batch")
    parser.add_argument("--length", type=int, default=256, help="tokens per sequence")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, for a machine that is busy")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(options.threads)
    setting = {"batch": options.batch, "length": options.length, "repetitions": options.repetitions}
    results = []
    for name in options.models:
        for tokens in options.tokens:
            results.append({"model": name} | measure(MODELS[name], tokens=tokens, **setting, clock=clock))
            print(results[-1], file=sys.stderr)
    setting |= {"threads": options.threads, "clock": clock.__name__}
    print(json.dumps({"setting": setting, "results": results}))


if __name__ == "__main__":
    main()
