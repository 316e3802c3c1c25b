"""Check what λ = 1 means: the quadratic form of the Fisher diagonal against the loss it should predict.

A model is trained briefly, then every weight is moved by a random sign times a small multiple of its tensor's
root mean square. For such moves ½ Σ Ω_i ΔW_i² predicts the mean increase of the loss in nats per token, if Ω is the
diagonal of the loss's curvature. Printed is prediction over increase, for each way to estimate Ω and each size of
model: 1 means that λ = 1 weighs a step away from the parent as the parent's own loss does. The last line on stdout is
JSON.

    python examples/benchmarks/fisher_scale.py --steps 400
"""

import argparse
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from hf_progressive.estimation.fisher import estimate_fisher
from hf_progressive.training.fisher_from_optimizer import fisher_from_optimizer

BYTES = 256
LENGTH, BATCH = 128, 16
SIZES = {"2x64": (2, 64), "3x96": (3, 96), "4x128": (4, 128)}
ESTIMATES = {
    "empirical, sequence": {"kind": "empirical", "definition": "sequence"},
    "empirical, token": {"kind": "empirical", "definition": "token"},
    "true": {"kind": "true", "definition": "sequence"},
}


def library_source(size: int) -> Tensor:
    """Read the Python standard library's own source as bytes."""
    text = b"".join(path.read_bytes() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
    return torch.frombuffer(bytearray(text[:size]), dtype=torch.uint8).long()


def windows(text: Tensor, batch: int, seed: int) -> Iterator[Tensor]:
    """Yield random windows of the text, (batch, LENGTH), without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - LENGTH, (batch,), generator=generator)
        yield torch.stack([text[start : start + LENGTH] for start in starts])


def train(
    layers: int, width: int, text: Tensor, steps: int, beta: float
) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
    """Train a small GPT-2 on bytes; return it and the optimizer, whose β₂ is given."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=width // 32, n_positions=LENGTH, vocab_size=BYTES)
    config.bos_token_id = config.eos_token_id = None
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, beta))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _, ids in zip(range(steps), windows(text, batch=BATCH, seed=1), strict=False):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval(), optimizer


@torch.no_grad()
def mean_loss(model: PreTrainedModel, batches: list[Tensor]) -> float:
    """Return nats per token."""
    return sum(float(model(input_ids=ids, labels=ids).loss) for ids in batches) / len(batches)


@torch.no_grad()
def compare(
    model: PreTrainedModel, fisher: dict[str, dict[str, Tensor]], batches: list[Tensor], step: float, draws: int
) -> dict[str, float]:
    """Return prediction over increase for each estimate, averaged over random moves and their opposites."""
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    before = mean_loss(model, batches)
    scales = {name: step * weight.square().mean().sqrt() for name, weight in weights.items()}
    increase = 0.0
    for draw in range(draws):
        torch.manual_seed(draw)
        signs = {name: torch.randint(2, weight.shape) * 2.0 - 1 for name, weight in weights.items()}
        for direction in (1, -1):
            for name, parameter in model.named_parameters():
                parameter.copy_(weights[name] + direction * scales[name] * signs[name])
            increase += (mean_loss(model, batches) - before) / (2 * draws)
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
    predicted = {
        label: sum(0.5 * float(value.sum()) * float(scales[name]) ** 2 for name, value in diagonal.items())
        for label, diagonal in fisher.items()
    }
    return {"loss": before, "increase": increase} | {label: value / increase for label, value in predicted.items()}


def main() -> None:
    """Print one line per size on stderr and all results as JSON on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--steps", type=int, default=400, help="training steps of 16 × 128 bytes")
    parser.add_argument(
        "--beta2", type=float, default=0.95, help="Adam's, whose second moment is one of the estimates"
    )
    parser.add_argument("--sequences", type=int, default=256, help="to estimate Ω and to measure the loss")
    parser.add_argument("--draws", type=int, default=6, help="random moves, each with its opposite")
    parser.add_argument("--move", type=float, default=0.02, help="size of a move relative to the weights")
    options = parser.parse_args()
    text = library_source(4_000_000)
    results = {}
    for size in options.sizes:
        model, optimizer = train(*SIZES[size], text, options.steps, options.beta2)
        stream = windows(text, batch=BATCH, seed=2)
        batches = [next(stream) for _ in range(max(1, options.sequences // BATCH))]
        fisher = {label: estimate_fisher(model, batches, **how) for label, how in ESTIMATES.items()}
        fisher["optimizer"] = fisher_from_optimizer(optimizer, model, batch_tokens=BATCH * (LENGTH - 1))
        results[size] = {"parameters": model.num_parameters()}
        results[size] |= {
            k: round(v, 4) for k, v in compare(model, fisher, batches, options.move, options.draws).items()
        }
        mean = sum(float(v.sum()) for v in fisher["empirical, sequence"].values()) / model.num_parameters()
        results[size]["mean entry"] = mean
        print(f"{size}: {results[size]}", file=sys.stderr)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
