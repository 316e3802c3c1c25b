"""Grow a checkpoint and see that the larger model says what the smaller one said.

    python examples/grow_checkpoint.py
    python examples/grow_checkpoint.py --source openai-community/gpt2 --output child --set n_embd=832 n_head=13

Without a source, a small GPT-2 learns a few lines of text first, in some seconds on a CPU. Parent and child then
continue the same prompt, and the fields in which their configs differ are listed.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, GPT2Config, GPT2LMHeadModel

from hf_progressive import grow_checkpoint
from hf_progressive.config import strict_yaml

TEXT = """\
A small model learned to read and write,
and what it knew it knew in black and white.
Then it was given space in which to grow:
new layers, silent, added to the row,
new channels, too, that carry what was there,
so that, before it learns, it is aware
of every line the smaller model knew,
and says them all again. And this one, too.
"""
PROMPT = "A small model"
TARGET = {"n_embd": 96, "n_head": 6, "n_layer": 3}


def build_parent(folder: Path, steps: int) -> None:
    """Train a small GPT-2 on bytes of the text above, and save it with its tokenizer.

    Args:
        folder: Where to.
        steps: Optimizer steps.
    """
    torch.manual_seed(0)
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokens = torch.tensor([tokenizer(TEXT).input_ids])  # (1, length)
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = GPT2Config(
        n_embd=64, n_head=4, n_layer=2, n_positions=tokens.shape[1], vocab_size=len(tokenizer), **special
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def continue_text(folder: str | Path, prompt: str, new_tokens: int) -> str:
    """Continue a prompt greedily.

    Args:
        folder: A checkpoint with its tokenizer.
        prompt: The beginning.
        new_tokens: How many to add.

    Returns:
        The text.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt_tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    tokens = model.generate(**prompt_tokens, max_new_tokens=new_tokens, do_sample=False)
    text: str = tokenizer.decode(tokens[0], skip_special_tokens=True)
    return text


def config_difference(parent: str | Path, child: str | Path) -> list[str]:
    """List the config fields in which two checkpoints differ.

    Args:
        parent: One checkpoint.
        child: The other.

    Returns:
        A line for each field.
    """
    before, after = (AutoConfig.from_pretrained(folder).to_dict() for folder in (parent, child))
    names = [name for name in after if before.get(name) != after[name] and not name.startswith("_")]
    return [f"{name}: {before.get(name)} → {after[name]}" for name in names]


def grow(source: str, output: Path, target: dict[str, Any], prompt: str, new_tokens: int) -> bool:
    """Grow a checkpoint and print what there is to see.

    Args:
        source: A folder or a Hub id.
        output: The folder to create.
        target: The child's config fields.
        prompt: The beginning of the text.
        new_tokens: How many to add.

    Returns:
        Whether parent and child wrote the same.
    """
    report = grow_checkpoint(source, output, target)
    assert report.verification is not None
    texts = [continue_text(folder, prompt, new_tokens) for folder in (source, output)]
    print(f"parent ({report.parameters_source:,} parameters):\n{texts[0]}\n")
    print(f"child ({report.parameters_target:,} parameters):\n{texts[1]}\n")
    print("\n".join(config_difference(source, output)))
    print(report.verification.describe())
    return texts[0] == texts[1]


def main() -> int:
    """Read the arguments and run; return 1 if the texts differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", help="a checkpoint's folder or Hub id; default: a small one is trained")
    parser.add_argument("--output", type=Path, help="the folder to create; default: a temporary one")
    parser.add_argument("--set", nargs="+", metavar="FIELD=VALUE", help=f"the child's fields; default: {TARGET}")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--steps", type=int, default=120, help="training steps of the small model")
    options = parser.parse_args()
    target = strict_yaml.apply_overrides({}, options.set or ())
    with tempfile.TemporaryDirectory() as folder:
        source = options.source or f"{folder}/parent"
        if options.source is None:
            build_parent(Path(source), options.steps)
        same = grow(
            source, options.output or Path(folder, "child"), target or TARGET, options.prompt, options.new_tokens
        )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
