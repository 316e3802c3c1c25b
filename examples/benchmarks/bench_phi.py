"""Time an optimizer step with each form of Φ against one without, in one process, the variants taking turns.

Variants: a plain step (forward and backward over micro-batches, clipping, AdamW); the same with Φ in each of its
forms, by `add_gradient` once before clipping or by `proximal_step` once after the optimizer's step; the same with Φ
written naively into every micro-batch's loss, for autograd to differentiate. Every repetition gives one ratio to the
plain step beside it; the median is reported, and beside it 1 plus the median time that Φ itself takes, over that of a
plain step: the steadier figure on a machine that is busy. The last line on stdout is JSON.

    python examples/benchmarks/bench_phi.py --models gpt2-6x320 --tokens 16384
"""

import argparse
import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

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
    """The kinds of step on one model."""

    def __init__(self, model: nn.Module, micro_batches: list[Tensor], clock: Callable[[], float]) -> None:
        self.model, self.micro_batches, self.clock = model, micro_batches, clock
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        self.anchor = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.fisher = {name: torch.rand_like(p) for name, p in self.anchor.items()}
        self.subspace = learn_subspace(model, source="weights", energy=0.95)
        self.forms = {name: penalty.bind(model) for name, penalty in self.penalties().items()}
        self.penalty_seconds: dict[str, list[float]] = {name: [] for name in self.forms}

    def penalties(self) -> dict[str, InheritancePenalty]:
        """Return Φ in each of its forms; `phi` is the first."""
        tensors = (self.anchor, self.fisher, self.subspace)
        full = InheritancePenalty(*tensors, ewc_lambda=EWC_LAMBDA, gamma=GAMMA)
        of_fisher = dataclasses.replace(full, subspace=None, gamma=0.0)
        return {
            "phi": full,
            "inside": dataclasses.replace(full, subspace_side="inside"),
            "proximal": dataclasses.replace(full, apply="proximal"),
            "proximal_ewc": dataclasses.replace(of_fisher, apply="proximal"),
            "l2_sp": InheritancePenalty.l2_sp(self.anchor, ewc_lambda=EWC_LAMBDA),
            "three_anchors": InheritancePenalty.sum([of_fisher] * 3),
        }

    def step(self, *, form: str | None = None, in_loss: Callable[[], Tensor] | None = None) -> None:
        """Take an optimizer step, with Φ in one of its forms or with a term in every loss."""
        for ids in self.micro_batches:
            loss = self.model(input_ids=ids, labels=ids, use_cache=False).loss
            if in_loss is not None:
                loss = loss + in_loss()
            (loss / len(self.micro_batches)).backward()
        proximal = form is not None and form.startswith("proximal")
        if form is not None and not proximal:
            self._timed(form, self.forms[form].add_gradient)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        if form is not None and proximal:
            self._timed(form, functools.partial(self.forms[form].proximal_step, self.optimizer))
        self.optimizer.zero_grad()

    def _timed(self, form: str, act: Callable[[], object]) -> None:
        start = self.clock()
        act()
        self.penalty_seconds[form].append(self.clock() - start)

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
    assert torch.allclose(variants.naive(), variants.forms["phi"].value())
    kinds: dict[str, dict[str, Any]] = {"plain": {}, **{form: {"form": form} for form in variants.forms}}
    kinds["naive"] = {"in_loss": variants.naive}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    variants.step(form="phi")  # allocates
    variants.penalty_seconds["phi"].clear()
    for _ in range(repetitions):
        for kind, options in kinds.items():
            start = clock()
            variants.step(**options)
            times[kind].append(clock() - start)
    plain = statistics.median(times["plain"])
    ratios = {
        kind: statistics.median(t / p for t, p in zip(times[kind], times["plain"], strict=True)) for kind in times
    }
    shares = {form: 1 + statistics.median(seconds) / plain for form, seconds in variants.penalty_seconds.items()}
    held = variants.forms["phi"].held_bytes()
    parameter_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    basis_bytes = sum(basis.numel() * basis.element_size() for basis in variants.subspace.values())
    return {
        "parameters": parameter_bytes // 4,
        "tokens": tokens,
        "plain_seconds": round(plain, 4),
        "phi_seconds": round(statistics.median(variants.penalty_seconds["phi"]), 4),
        **{f"{kind}_over_plain": round(ratio, 4) for kind, ratio in ratios.items() if kind != "plain"},
        **{f"one_plus_{form}_share": round(share, 4) for form, share in shares.items()},
        "anchor_and_fisher_over_parameters": round((held - basis_bytes) / parameter_bytes, 3),
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
