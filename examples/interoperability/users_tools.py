"""Take a grown checkpoint of each main family through the tools that people use, and write what each gave.

    python examples/interoperability/users_tools.py --into docs/tools.md --gguf-converter FILE

A small parent with random weights is grown in width and depth, and each tool's logits are compared with those of the
stock class in float32. Every tool runs in a process of its own. Where it fails, or is further off than LIMIT, it is
tried on the parent too, which growth has no part in. tools.json, beside this file, has what the page is made of. What
is installed decides which tools are tried:

    pip install ctranslate2 onnxruntime onnx onnxscript peft mergekit lm-eval

The GGUF converter is no package: `--gguf-converter` names llama.cpp's `convert_hf_to_gguf.py`, which the sdist of
`llama-cpp-python` holds under `vendor/llama.cpp`. What is done for it the page's last paragraph says.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
         "max_position_embeddings": 64, "tie_word_embeddings": False}  # fmt: skip
LARGE = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 96}
GROUPED, MORE_GROUPED = {**SMALL, "num_key_value_heads": 2}, {**LARGE, "num_key_value_heads": 3}
WINDOW = {"sliding_window": 16, "query_pre_attn_scalar": 8, "head_dim": 8, "tie_word_embeddings": True}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_ctx": 64},
             {"n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 96}),
    "gpt_neox": (SMALL, LARGE),
    **dict.fromkeys(("llama", "mistral", "qwen2"), (GROUPED, MORE_GROUPED)),
    "qwen3": ({**GROUPED, "head_dim": 8}, MORE_GROUPED),
    "gemma2": ({**GROUPED, **WINDOW}, MORE_GROUPED),
    "gemma3_text": ({**GROUPED, **WINDOW}, MORE_GROUPED),
    # OLMo 2's norm of keys is over all key/value heads, which stay.
    "olmo2": (GROUPED, {**LARGE, "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2}),
    "phi3": (GROUPED, MORE_GROUPED),
    "mixtral": ({**GROUPED, "num_local_experts": 4}, MORE_GROUPED),
    "qwen3_moe": ({**GROUPED, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                   "norm_topk_prob": True}, MORE_GROUPED),
}  # fmt: skip
"""Sizes of the parent, and of the child."""

Outcome = dict[str, Any]
"""Largest `difference` of logits, of one log-likelihood for lm-evaluation-harness, at a `scale`; or what is `said`."""

VOCABULARY, LENGTH = 300, 24
LIMIT = 1e-3
"""Share of the scale from which on a difference is no rounding."""
PAGE_WIDTH = 125
MARK = "figure: "
ERROR = re.compile(r"[\w.]*(Error|Exception)\b")
RECORD = Path(__file__).with_name("tools.json")
CONVERT = """
import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TEXTS = ["the rung grows from the rung below, and what it knows it keeps", "a word, another word, and 12 more"] * 20


def build(family: str, folder: Path) -> Path:
    """Write a parent with its tokenizer, folder/parent, and grow it; returns the child's folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from hf_progressive import grow_checkpoint
    from hf_progressive.data import train_tokenizer

    small, large = FAMILIES[family]
    tokenizer = train_tokenizer(TEXTS, vocab_size=VOCABULARY, training_bytes=10**5)
    torch.manual_seed(0)
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **small, **tokens))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder / "parent")
    tokenizer.save_pretrained(folder / "parent")
    grow_checkpoint(folder / "parent", folder / "grown", large, progress=False, verify=False)
    return folder / "grown"


def stock(folder: Path) -> tuple[Any, Any, Any]:
    """Return the model in its stock class, some tokens (1, length) and its logits of them (length, vocabulary)."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.randint(1, VOCABULARY, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model, tokens, model(input_ids=tokens).logits[0]


def compared(found: Any, expected: Any) -> Outcome:
    """Say how far two sets of logits are apart."""
    import torch

    difference = (torch.as_tensor(found).double() - expected.double()).abs().max().item()
    return {"difference": difference, "scale": expected.abs().max().item()}


def run_program(arguments: list[str]) -> None:
    """Run Python with arguments; where that fails, its last error is this one's message."""
    ran = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(reason_in(ran.stderr))


def reason_in(printed: str) -> str:
    """Return the line of what a failed program printed that names its error, without colours and temporary folders."""
    lines = re.sub(r"\x1b\[\d*m", "", printed).strip().splitlines()
    named = [line for line in lines if ERROR.match(line)]
    line = (named or lines or ["no reason given"])[-1].removeprefix("RuntimeError: ")
    return re.sub(r"\S*/(grown|parent)\b", "CHECKPOINT", line.partition(" (supported configurations")[0])[:160]


def ctranslate2(folder: Path, work: Path) -> Outcome:
    """Convert for CTranslate2 and compare."""
    import numpy as np
    from ctranslate2 import Generator
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoTokenizer

    TransformersConverter(str(folder)).convert(str(work / "converted"))
    _, tokens, expected = stock(folder)
    words = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(tokens[0].tolist())
    logits = np.array(Generator(str(work / "converted")).forward_batch([words]))[0]
    return compared(logits, expected)


def onnxruntime(folder: Path, work: Path) -> Outcome:
    """Export with torch's exporter and compare in ONNX Runtime."""
    import torch
    from onnxruntime import InferenceSession

    model, tokens, expected = stock(folder)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any) -> Any:
            return self.model(input_ids=input_ids, use_cache=False).logits

    path = work / "model.onnx"
    torch.onnx.export(Logits(), (tokens,), path, input_names=["input_ids"], dynamo=True, verbose=False)
    (logits,) = InferenceSession(path).run(None, {"input_ids": tokens.numpy()})
    return compared(logits[0], expected)


def peft(folder: Path, work: Path) -> Outcome:
    """Put an adapter on, move it, merge it, save and load the result."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model, tokens, _ = stock(folder)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    with torch.no_grad():
        expected = adapted(input_ids=tokens).logits[0]
    adapted.merge_and_unload().save_pretrained(work / "merged")
    merged = AutoModelForCausalLM.from_pretrained(work / "merged")
    with torch.no_grad():
        return compared(merged(input_ids=tokens).logits[0], expected)


def mergekit(folder: Path, work: Path) -> Outcome:
    """Merge the checkpoint with a copy of itself, half and half."""
    _, _, expected = stock(folder)
    shutil.copytree(folder, work / "copy")  # mergekit refuses one model twice
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(each), "parameters": {"weight": 0.5}} for each in (folder, work / "copy")],
        "dtype": "float32",
    }
    (work / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    run_program(["-m", "mergekit.scripts.run_yaml", str(work / "recipe.yaml"), str(work / "merged")])
    return compared(stock(work / "merged")[2], expected)


def lm_eval(folder: Path, work: Path) -> Outcome:
    """Let lm-evaluation-harness score a continuation, and compare with the stock class."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    context, continuation = "the rung grows", " from the rung below"
    harness = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)
    request = Instance(request_type="loglikelihood", doc={}, arguments=(context, continuation), idx=0)
    ((found, _),) = harness.loglikelihood([request])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first, rest = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, continuation))
    model, _, _ = stock(folder)
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([first + rest])).logits[0].log_softmax(-1)
    expected = sum(log_p[len(first) - 1 + i, token].item() for i, token in enumerate(rest))
    return {"difference": abs(found - expected), "scale": abs(expected)}


def gguf(folder: Path, work: Path) -> Outcome:
    """Convert with llama.cpp's script and read the result back with Transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    converter = os.environ["GGUF_CONVERTER"]
    options = [str(folder), "--outtype", "f32", "--outfile", str(work / "model.gguf")]
    run_program(["-c", CONVERT, converter, *options])
    if other := misread(work / "model.gguf"):
        return {"said": f"converts; Transformers reads it {other}"}
    _, tokens, expected = stock(folder)
    model = AutoModelForCausalLM.from_pretrained(work, gguf_file="model.gguf", dtype=torch.float32)
    with torch.no_grad():
        return compared(model(input_ids=tokens).logits[0], expected)


def misread(path: Path) -> str:
    """Say which size Transformers takes for another than a GGUF file says, after which it refuses the weights."""
    from gguf import GGUFReader
    from transformers import AutoConfig

    fields = GGUFReader(path).fields
    family = fields["general.architecture"].contents()
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    for key, name, words in (
        ("context_length", "max_position_embeddings", "{:,} positions"),
        ("attention.key_length", "head_dim", "a head_dim of {}"),
    ):
        entry, taken = fields.get(f"{family}.{key}"), getattr(config, name, None)
        if entry is not None and taken is not None and taken != entry.contents():
            return f"with {words.format(taken)} instead of the file's {entry.contents():,}"
    return ""


TOOLS: dict[str, tuple[Callable[[Path, Path], Outcome], str]] = {
    "CTranslate2": (ctranslate2, "ctranslate2"),
    "ONNX Runtime": (onnxruntime, "onnxruntime"),
    "PEFT, merged": (peft, "peft"),
    "mergekit": (mergekit, "mergekit"),
    "lm-evaluation-harness": (lm_eval, "lm_eval"),
    "GGUF converter": (gguf, "gguf"),
}
"""Each tool's function, and its package."""


def outcomes(tool: str, folders: list[Path]) -> list[Outcome]:
    """Run a tool on checkpoints in a process of its own; returns each one's figure, or why there is none."""
    package = TOOLS[tool][1]
    try:
        version(package)
    except PackageNotFoundError:
        return [{"said": "not installed"}] * len(folders)
    if package == "gguf" and "GGUF_CONVERTER" not in os.environ:
        return [{"said": "not tried: no --gguf-converter"}] * len(folders)
    found: list[Outcome] = []
    while len(found) < len(folders):  # after a failure the others go on in a new process
        rest = [str(folder) for folder in folders[len(found) :]]
        command = [sys.executable, __file__, "--tool", tool, "--folders", *rest]
        ran = subprocess.run(command, capture_output=True, text=True)
        found += [json.loads(line.removeprefix(MARK)) for line in ran.stdout.splitlines() if line.startswith(MARK)]
        if ran.returncode:
            found.append({"said": f"fails: {reason_in(ran.stderr)}"})
    return found


def close(outcome: Outcome) -> bool:
    """Tell whether a tool computed what the stock class does."""
    return "difference" in outcome and outcome["difference"] <= LIMIT * outcome["scale"]


def measure(tool: str, grown: dict[str, Path]) -> dict[str, Outcome]:
    """Run a tool on the grown checkpoint of each family, and on the parents of those that it cannot take."""
    results = dict(zip(grown, outcomes(tool, [*grown.values()]), strict=True))
    astray = [family for family, outcome in results.items() if not close(outcome)]
    parents = outcomes(tool, [grown[family].parent / "parent" for family in astray])
    for family, parent in zip(astray, parents, strict=True):
        results[family] = {**results[family], "parent": parent}
    return results


def figure(outcome: Outcome) -> str:
    """Write a figure, or what is said instead."""
    if "said" in outcome:
        return str(outcome["said"])
    return f"{outcome['difference']:.1e} at {outcome['scale']:.2g}"


def page(record: dict[str, Any]) -> str:
    """Write the whole page."""
    versions, results = record["versions"], record["results"]
    names = [f"{tool} {versions[tool]}" if tool in versions else tool for tool in results]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    notes: dict[str, str] = {}
    for family in next(iter(results.values())):
        cells = [family]
        for found in results.values():
            outcome = found[family]
            if close(outcome):
                cells.append(figure(outcome))
                continue
            parent = outcome.get("parent", {"said": "was not tried"})
            alike = figure(parent) == figure(outcome)
            note = f"{figure(outcome)}; the parent{' alike' if alike else f': {figure(parent)}'}"
            cells.append(f"({notes.setdefault(note, str(len(notes) + 1))})")
        lines.append("| " + " | ".join(cells) + " |")
    return (
        "# Grown checkpoints in other tools\n\n"
        "<!-- Made by `python examples/interoperability/users_tools.py`. -->\n\n"
        + textwrap.fill(
            "A small parent of each family, with random weights, was grown in width and depth, and taken through each"
            " tool. A figure is the largest difference of a logit from the stock class's in float32 (Transformers"
            f" {versions['transformers']}), and how large logits are; for lm-evaluation-harness, of one"
            " continuation's log-likelihood. What a number in brackets stands for is below the table, with what the"
            " same tool makes of the parent, which was not grown.",
            PAGE_WIDTH,
            break_on_hyphens=False,
        )
        + "\n\n"
        + "\n".join(lines)
        + "\n\n"
        + "".join(f"{number}. {note}\n" for note, number in notes.items())
        + about_gguf(versions)
    )


def about_gguf(versions: dict[str, str]) -> str:
    """Write what stands below the table, where the GGUF converter was tried."""
    if "llama-cpp-python" not in versions:
        return ""
    text = (
        "llama.cpp's converter is no package of its own; the source package of `llama-cpp-python`"
        f" ({versions['llama-cpp-python']}) has it. It knows tokenizers by a digest and refuses one's own, so that"
        " it was told GPT-2's way of cutting words. What it writes is read back by Transformers' reader of GGUF."
        " Where that takes another size than the file's, it refuses the weights; the file has the right one."
    )
    return "\n" + textwrap.fill(text, PAGE_WIDTH, break_on_hyphens=False) + "\n"


def installed(tools: list[str]) -> dict[str, str]:
    """Return the versions of tools and of what they are compared by."""
    found = {"transformers": version("transformers")}
    for tool in tools:
        with contextlib.suppress(PackageNotFoundError):
            found[tool] = version(TOOLS[tool][1])
    if of_converter := re.search(r"llama_cpp_python-([\d.]+)", os.environ.get("GGUF_CONVERTER", "")):
        found["llama-cpp-python"] = of_converter[1]
    return found


def main() -> None:
    """Run all tools on all families, or one on one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--gguf-converter", metavar="FILE", help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--into", type=Path, metavar="FILE", help="write the page there")
    parser.add_argument("--tool", help=argparse.SUPPRESS)
    parser.add_argument("--folders", type=Path, nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tool:
        for checkpoint in options.folders:
            with tempfile.TemporaryDirectory() as work:
                print(MARK + json.dumps(TOOLS[options.tool][0](checkpoint, Path(work))), flush=True)
        return
    if options.into and {*options.families, *options.tools} != {*FAMILIES, *TOOLS}:
        parser.error("--into writes the whole page: leave out --families and --tools")
    if options.gguf_converter:
        os.environ["GGUF_CONVERTER"] = options.gguf_converter
    with tempfile.TemporaryDirectory() as folder:
        grown = {family: build(family, Path(folder) / family) for family in options.families}
        results: dict[str, dict[str, Outcome]] = {}
        for tool in options.tools:
            results[tool] = measure(tool, grown)
            print(
                f"{tool}: {', '.join(f'{name} {figure(of)}' for name, of in results[tool].items())}", file=sys.stderr
            )
    record = {"versions": installed(options.tools), "results": results}
    if options.into:
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        options.into.write_text(page(record), encoding="utf-8")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
