"""Continue training on another domain with elastic weight consolidation, and measure what is forgotten.

A small GPT-2 learns English, then goes on with Python source: once freely, and once for each λ of a sweep, held by the
diagonal Fisher information of the English it knew. The table shows, per λ, what that cost on English (forgetting) and
on Python. Nothing here is about growing models: `InheritancePenalty` and `ProgressiveTrainer` serve any causal
language model.

    python examples/continue_with_ewc.py                      # offline; English from the standard library's docstrings
    python examples/continue_with_ewc.py --english books.parquet --lambdas 1 10 100
"""

import argparse
import ast
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, set_seed

from hf_progressive.data.documents import stdlib_texts
from hf_progressive.data.tokenizer import train_tokenizer
from hf_progressive.estimation import estimate_fisher
from hf_progressive.penalty import InheritancePenalty
from hf_progressive.training.trainer import ProgressiveTrainer, ProgressiveTrainingArguments

CONTEXT, BATCH = 128, 16
VALIDATION_BLOCKS = 128
SHORTEST_DOCSTRING = 200


class Blocks(Dataset):
    """Token blocks (n, CONTEXT) as a causal language model trains on them."""

    def __init__(self, blocks: Tensor) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


def split_source(source: str) -> tuple[list[str], str]:
    """Return a module's docstrings, which are English, and its code without docstrings and comments."""
    tree = ast.parse(source)
    prose = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is None:
                continue
            if len(text) >= SHORTEST_DOCSTRING:
                prose.append(text)
            node.body[0] = ast.Pass()
    return prose, ast.unparse(tree)


def read_domains(english: Path | None, characters: int) -> tuple[list[str], list[str]]:
    """Return documents of English and of Python source, up to a number of characters each."""
    prose: list[str] = [] if english is None else list(read_texts(english, characters))
    code: list[str] = []
    for source in tqdm(stdlib_texts(), desc="Reading", unit="file"):
        if sum(map(len, code)) >= characters and (english or sum(map(len, prose)) >= characters):
            break
        try:
            docstrings, rest = split_source(source)
        except SyntaxError:  # the library's tests hold some on purpose
            continue
        code.append(rest)
        if english is None:
            prose += docstrings
    return prose, code


def read_texts(path: Path, characters: int) -> Iterator[str]:
    """Yield documents of a .txt file or of a .parquet file's `text` column."""
    texts = (
        pyarrow.parquet.read_table(path, columns=["text"])["text"].to_pylist()
        if path.suffix == ".parquet"
        else path.read_text(encoding="utf-8").split("\n\n")
    )
    for text in texts:
        if characters <= 0:
            return
        characters -= len(text)
        yield text


def pack(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return training and validation blocks (n, CONTEXT); every tenth document is held out."""
    parts: tuple[list[int], list[int]] = ([], [])
    for index, text in enumerate(texts):
        parts[index % 10 == 9].extend([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
    train, validation = (torch.tensor(ids[: len(ids) // CONTEXT * CONTEXT]).view(-1, CONTEXT) for ids in parts)
    return train, validation[:VALIDATION_BLOCKS]


def train(
    model: GPT2LMHeadModel, blocks: Tensor, *, steps: int, rate: float, penalty: InheritancePenalty | None = None
) -> None:
    """Train for a number of optimizer steps, with Φ if a penalty is given."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ProgressiveTrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=steps // 20,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=False,
        )
        ProgressiveTrainer(model, arguments, train_dataset=Blocks(blocks), penalty=penalty).train()


@torch.no_grad()
def loss_of(model: GPT2LMHeadModel, blocks: Tensor) -> float:
    """Return the mean loss in nats per token."""
    model.eval()
    losses = [model(input_ids=ids, labels=ids).loss.item() for ids in blocks.to(model.device).split(BATCH)]
    return sum(losses) / len(losses)


def print_table(rows: Sequence[dict[str, float]]) -> None:
    """Print the sweep; the first row is λ = 0."""
    free = rows[0]
    print(f"{'λ':>8} {'English before':>15} {'after':>8} {'forgotten':>10} {'share':>7} {'Python':>8} {'worse':>7}")
    for row in rows:
        share, worse = row["forgotten"] / free["forgotten"], row["python"] / free["python"] - 1
        print(
            f"{row['lambda']:8g} {row['english_before']:15.3f} {row['english_after']:8.3f} {row['forgotten']:10.3f} "
            f"{share:7.0%} {row['python']:8.3f} {worse:7.1%}"
        )


def main() -> None:
    """Train both domains for every λ and print the table; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--english", type=Path, help="a .txt file, or a .parquet file with a column text")
    parser.add_argument("--lambdas", type=float, nargs="+", default=[1.0, 5.0, 15.0, 50.0])
    parser.add_argument("--characters", type=int, default=2_000_000, help="of each domain, at most")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--steps", type=int, nargs=2, default=[600, 700], help="on English, and on Python")
    parser.add_argument("--rates", type=float, nargs=2, default=[3e-3, 5e-4], help="learning rates of the two")
    parser.add_argument("--fisher-blocks", type=int, default=256)
    options = parser.parse_args()

    set_seed(0)
    prose, code = read_domains(options.english, options.characters)
    tokenizer = train_tokenizer([*prose, *code], vocab_size=options.vocabulary, training_bytes=4 * options.characters)
    (english, english_held), (python, python_held) = pack(tokenizer, prose), pack(tokenizer, code)
    print(f"{len(english)} blocks of English, {len(python)} of Python", file=sys.stderr)

    config = GPT2Config(
        n_layer=options.layers,
        n_embd=options.width,
        n_head=max(1, options.width // 32),
        vocab_size=options.vocabulary,
        n_positions=CONTEXT,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config)
    train(model, english, steps=options.steps[0], rate=options.rates[0])

    # What EWC needs: where the model stands, and how much the English it knows cares for each weight.
    anchor = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fisher = estimate_fisher(model, english[: options.fisher_blocks].split(BATCH), kind="true")

    before = loss_of(model, english_held)
    rows = []
    for ewc_lambda in [0.0, *options.lambdas]:
        model.load_state_dict(anchor, strict=False)
        penalty = InheritancePenalty(anchor, fisher, ewc_lambda=ewc_lambda) if ewc_lambda else None
        train(model, python, steps=options.steps[1], rate=options.rates[1], penalty=penalty)
        after = loss_of(model, english_held)
        row = {"lambda": ewc_lambda, "english_before": before, "english_after": after, "forgotten": after - before}
        rows.append(row | {"python": loss_of(model, python_held)})
        print(rows[-1], file=sys.stderr)
    print_table(rows)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
