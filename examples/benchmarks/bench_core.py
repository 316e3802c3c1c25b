"""Examples per second of CORE, against answering one example at a time.

Both ways ask the same examples of the same model in the same process, task by task, one after the other. The slow way
is the usual one: the options of one example, whole, padded to one batch, with logits for every token. The last line
on stdout is a JSON object; its `answers_differ` counts the examples that the two ways judge differently.

    python examples/benchmarks/bench_core.py --bundle DIR [--model DIR] [--max-per-task 40] [--depth 6]

Without `--model`, a randomly initialised GPT-2 of the given depth (64 channels and one head per layer) is measured,
with a byte-level BPE trained on the bundle's own text: speed does not depend on what the weights are.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hf_progressive.evaluation.bundle import load_bundle
from hf_progressive.evaluation.core import answer_task, context_length
from hf_progressive.evaluation.prompts import build_requests, draw_examples

END_OF_TEXT = "<|endoftext|>"


def build_tokenizer(bundle_dir, vocab_size):
    """Train a byte-level BPE on the bundle's data files."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(path) for path in sorted(Path(bundle_dir, "eval_data").rglob("*.jsonl"))], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def build_model(depth, context, vocab_size):
    """Build a randomly initialised GPT-2 on the depth dial: 64·depth channels, depth heads, depth layers."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=depth, n_embd=64 * depth, n_head=depth, n_positions=context, vocab_size=vocab_size, bos_token_id=0
    )
    return GPT2LMHeadModel(config).eval()


@torch.no_grad()
def answer_one_by_one(model, tokenizer, task, max_per_task):
    """Judge a task's examples one at a time, the options of one example as one padded batch."""
    examples = draw_examples(task, max_per_task)
    correct = []
    for index in range(len(examples)):
        (request,) = build_requests(task, examples, [index], tokenizer, context_length(model))
        width = max(len(row.tokens) for row in request.rows)
        input_ids = torch.tensor([row.tokens + (0,) * (width - len(row.tokens)) for row in request.rows])
        logits = model(input_ids, use_cache=False).logits  # (options, width, vocabulary)
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].mT, input_ids[:, 1:], reduction="none")
        spans = [slice(row.start - 1, len(row.tokens) - 1) for row in request.rows]
        if len(spans) == 1:
            greedy = logits[0, spans[0]].argmax(dim=-1)
            correct.append(greedy.tolist() == list(request.rows[0].tokens[request.rows[0].start :]))
        else:
            means = [loss[span].mean().item() for loss, span in zip(losses, spans, strict=True)]
            correct.append(means.index(min(means)) == request.gold)
    return correct


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="folder of a CORE bundle")
    parser.add_argument("--model", help="checkpoint to measure instead of a random GPT-2")
    parser.add_argument("--tasks", nargs="*", help="labels of the tasks to measure, all by default")
    parser.add_argument("--max-per-task", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--vocab-size", type=int, default=32768)
    args = parser.parse_args()

    if args.model:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32").eval()
        tokenizer = AutoTokenizer.from_pretrained(args.model)
    else:
        tokenizer = build_tokenizer(args.bundle, args.vocab_size)
        model = build_model(args.depth, args.context, args.vocab_size)

    examples = slow_seconds = fast_seconds = differ = 0
    for task in load_bundle(args.bundle).select(args.tasks):
        began = time.perf_counter()
        slow = answer_one_by_one(model, tokenizer, task, args.max_per_task)
        slow_task = time.perf_counter() - began
        began = time.perf_counter()
        answers = answer_task(model, tokenizer, task, max_per_task=args.max_per_task, batch_size=args.batch_size)
        fast_task = time.perf_counter() - began
        differ += sum(answer.correct != reference for answer, reference in zip(answers, slow, strict=True))
        examples, slow_seconds, fast_seconds = examples + len(slow), slow_seconds + slow_task, fast_seconds + fast_task
        print(f"{task.label:32} {slow_task:8.2f} s {fast_task:8.2f} s {slow_task / fast_task:6.1f}×")
    print(
        json.dumps(
            {
                "benchmark": "core",
                "parameters": model.num_parameters(),
                "vocab_size": model.config.vocab_size,
                "context": context_length(model),
                "threads": torch.get_num_threads(),
                "examples": examples,
                "examples_per_second": round(examples / fast_seconds, 2),
                "one_at_a_time_examples_per_second": round(examples / slow_seconds, 2),
                "speedup": round(slow_seconds / fast_seconds, 2),
                "answers_differ": differ,
            }
        )
    )


if __name__ == "__main__":
    main()
