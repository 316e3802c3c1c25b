"""Fine-tune a language model with TRL's SFTTrainer, held by Φ near what it knew, and show what that costs and saves.

A model that knows English is tuned to write Python functions for their docstrings: once freely, and once for each λ,
held by the Fisher information of the English it knew. The table and the picture show the loss on both domains. Nothing
of the old domain is replayed.

    python examples/sft_without_forgetting.py                 # offline: a small GPT-2 learns English first
    python examples/sft_without_forgetting.py --lora 8        # the same with LoRA, Φ on what the adapters add
    python examples/sft_without_forgetting.py --model HuggingFaceTB/SmolLM2-135M --rate 5e-5 --lambdas 1 10

English is the docstrings of Python's own standard library, and so are the functions.
"""

import argparse
import ast
import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from matplotlib import pyplot
from peft import LoraConfig
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from hf_progressive import InheritancePenalty, LoraPenalty, ProgressiveMixin, ProgressiveTrainer, estimate_fisher
from hf_progressive.data.documents import stdlib_texts
from hf_progressive.data.tokenizer import train_tokenizer

CONTEXT, BATCH = 128, 16
HELD_OUT = 100
SHORTEST_DOCSTRING, LONGEST_FUNCTION = 200, 500  # characters


class HeldSFTTrainer(ProgressiveMixin, SFTTrainer):
    """TRL's trainer with Φ: its own arguments, and `penalty=` beside them."""


def read_library(characters: int) -> tuple[list[str], list[dict[str, str]]]:
    """Return English, and functions as pairs of prompt and completion, up to so many characters of each."""
    english: list[str] = []
    functions: list[dict[str, str]] = []
    for source in tqdm(stdlib_texts(), desc="Reading", unit="file"):
        if sum(map(len, english)) >= characters and sum(len(f["completion"]) for f in functions) >= characters:
            break
        try:
            tree = ast.parse(source)
        except SyntaxError:  # the library's tests hold some on purpose
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            text = ast.get_docstring(node) or ""
            if isinstance(node, ast.FunctionDef) and text and len(node.body) > 1:
                node.body.pop(0)
                completion = ast.unparse(node)
                if len(completion) <= LONGEST_FUNCTION:
                    functions.append({"prompt": f"# {text.splitlines()[0]}\n", "completion": completion})
            elif len(text) >= SHORTEST_DOCSTRING:
                english.append(text)
    return english, functions


def pack(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    """Return blocks (n, CONTEXT) of token ids."""
    ids = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    return torch.tensor(ids[: len(ids) // CONTEXT * CONTEXT]).view(-1, CONTEXT)


def small_model(
    options: argparse.Namespace, english: Sequence[str]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Train a tokenizer and a GPT-2 on English: what a model from the Hub would have learned already."""
    tokenizer = train_tokenizer(english, vocab_size=options.vocabulary, training_bytes=4 * options.characters)
    tokenizer.pad_token = tokenizer.eos_token
    end, sizes = tokenizer.eos_token_id, {"n_layer": options.layers, "n_embd": options.width}
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(
        GPT2Config(
            n_head=max(1, options.width // 32),
            vocab_size=options.vocabulary,
            n_positions=4 * CONTEXT,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            **sizes,
            **no_dropout,
        )  # fmt: skip
    )
    blocks = [{"input_ids": ids, "labels": ids} for ids in pack(tokenizer, english)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=options.steps[0], per_device_train_batch_size=BATCH, learning_rate=3e-3,
            lr_scheduler_type="cosine", warmup_steps=20, save_strategy="no", logging_strategy="no", report_to="none",
        )  # fmt: skip
        ProgressiveTrainer(model, arguments, train_dataset=blocks).train()
    return model, tokenizer


def tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    functions: Sequence[dict[str, str]],
    options: argparse.Namespace,
    penalty: InheritancePenalty | LoraPenalty | None,
) -> PreTrainedModel:
    """Fine-tune a copy of a model on pairs of prompt and completion, with Φ if a penalty is given."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            folder, max_steps=options.steps[1], per_device_train_batch_size=BATCH, learning_rate=options.rate,
            lr_scheduler_type="cosine", warmup_steps=10, max_length=2 * CONTEXT, save_strategy="no",
            logging_strategy="no", report_to="none", bf16=torch.cuda.is_available(), gradient_checkpointing=False,
        )  # fmt: skip
        trainer = HeldSFTTrainer(
            copy.deepcopy(model),
            arguments,
            train_dataset=Dataset.from_list(list(functions)),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=options.lora, target_modules="all-linear") if options.lora else None,
            penalty=penalty,
        )
        trainer.train()
    return trainer.model


@torch.no_grad()
def english_loss(model: PreTrainedModel, blocks: Tensor) -> float:
    """Return the mean loss on English, in nats per token."""
    model.eval()
    losses = [model(input_ids=ids, labels=ids).loss.item() for ids in blocks.to(model.device).split(BATCH)]
    return sum(losses) / len(losses)


@torch.no_grad()
def function_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, functions: Sequence[dict[str, str]]
) -> float:
    """Return the mean loss on the completions, in nats per token."""
    model.eval()
    total, tokens = 0.0, 0
    for function in functions:
        prompt, completion = (tokenizer(function[part])["input_ids"] for part in ("prompt", "completion"))
        ids = torch.tensor([[*prompt, *completion]], device=model.device)[:, : 2 * CONTEXT]
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        if wanted := int((labels[:, 1:] != -100).sum()):
            total, tokens = total + wanted * float(model(input_ids=ids, labels=labels).loss), tokens + wanted
    return total / tokens


def draw(rows: Sequence[dict[str, float]], picture: Path) -> None:
    """Show the loss on the old domain against that on the new one; the best is down and to the left."""
    figure, axes = pyplot.subplots(figsize=(6, 4.5), layout="constrained")
    before, *tuned = rows
    axes.axhline(before["english"], color="grey", linestyle=":", label="before")
    axes.plot([row["functions"] for row in tuned], [row["english"] for row in tuned], "o-", color="#d95f02")
    for row in tuned:
        name = f"λ = {row['lambda']:g}" if row["lambda"] else "without Φ"
        axes.annotate(name, (row["functions"], row["english"]), xytext=(6, 4), textcoords="offset points")
    axes.set_xlabel("loss on Python functions, which are learned (nats per token)")
    axes.set_ylabel("loss on English, which was known")
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=150)
    pyplot.close(figure)


def main() -> None:
    """Tune without Φ and with it, print the table, write the picture; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="a causal language model, on the disk or the Hub; without, a small one is trained"
    )
    parser.add_argument("--lora", type=int, default=0, metavar="R", help="tune by LoRA of this rank")
    parser.add_argument("--lambdas", type=float, nargs="+", default=[1.0, 10.0, 100.0])
    parser.add_argument("--steps", type=int, nargs=2, default=[400, 200], help="on English, and of fine-tuning")
    parser.add_argument("--rate", type=float, help="learning rate of fine-tuning; 1e-3, with LoRA 5e-3")
    parser.add_argument("--characters", type=int, default=2_000_000, help="of each domain, at most")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--picture", type=Path, default=Path("sft_without_forgetting.png"))
    options = parser.parse_args()
    options.rate = options.rate or (5e-3 if options.lora else 1e-3)

    set_seed(0)
    english, functions = read_library(options.characters)
    if options.model:
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
    else:
        model, tokenizer = small_model(options, english[HELD_OUT:])
    known, held_out = pack(tokenizer, english[HELD_OUT:]), pack(tokenizer, english[:HELD_OUT])

    # What Φ needs: where the model stands, and how much the English it knows cares for each weight.
    fisher = estimate_fisher(model, known[:256].split(BATCH), kind="true")
    anchor = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def row(tuned: PreTrainedModel, **settings: float) -> dict[str, float]:
        losses = {"english": english_loss(tuned, held_out)}
        return settings | losses | {"functions": function_loss(tuned, tokenizer, functions[:HELD_OUT])}

    rows = [row(model)]
    for ewc_lambda in [0.0, *options.lambdas]:
        penalty: InheritancePenalty | LoraPenalty | None = None
        if ewc_lambda:
            held = LoraPenalty(fisher, ewc_lambda=ewc_lambda)
            penalty = held if options.lora else InheritancePenalty(anchor, fisher, ewc_lambda=ewc_lambda)
        rows.append(row(tune(model, tokenizer, functions[HELD_OUT:], options, penalty), **{"lambda": ewc_lambda}))

    print(f"{'λ':>8} {'English':>8} {'functions':>10}")
    for each in rows:
        print(f"{each.get('lambda', 'before'):>8} {each['english']:8.3f} {each['functions']:10.3f}")
    draw(rows, options.picture)
    print(f"picture: {options.picture}")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
