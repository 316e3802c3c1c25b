"""Examples per second of CORE, against the usual way: one example at a time, its options as one batch.

The usual way, that of nanochat's scorer among others, pads the options of one example on the right, runs the model
on them once, and computes logits, losses and predictions of every token. Both ways ask the same examples of the same
model in the same process, task by task, and take turns in going first. The last line on stdout is a JSON object; its
`answers_differ` counts the examples that the two ways judge differently.

    python examples/benchmarks/bench_core.py --bundle DIR [--model DIR] [--max-per-task 20] [--depth 6]

Without `--model`, a randomly initialised GPT-2 of the given depth (64 channels and one head per layer) is measured,
with a byte-level BPE trained on the bundle's own text: speed does not depend on what the weights are. The ratio
depends on the size of the vocabulary beside the width, since the usual way computes all logits. `speedup` is by the
clock; `cpu_speedup` by the processor time that both ways took, which on a busy machine is the steadier of the two.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hf_progressive.evaluation.core.bundle import load_bundle
from hf_progressive.evaluation.core.evaluate import answer_task, context_length
from hf_progressive.evaluation.core.prompts import build_requests, draw_examples

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
def read_whole_batch(model, input_ids):
    """Return the loss and the prediction at every position of padded sequences, (B, T) each."""
    logits = model(input_ids, use_cache=False).logits  # (B, T, vocabulary)
    targets = input_ids.roll(-1, dims=1)  # (B, T); the last one of each is none
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view_as(targets), logits.argmax(dim=-1)


def answer_by_example(model, tokenizer, task, max_per_task):
    """Judge a task's examples one at a time, the options of one example as one padded batch."""
    examples = draw_examples(task, max_per_task)
    correct = []
    for request in build_requests(task, examples, range(len(examples)), tokenizer, context_length(model)):
        width = max(len(row.tokens) for row in request.rows)
        input_ids = torch.tensor(
            [row.tokens + (0,) * (width - len(row.tokens)) for row in request.rows], device=model.device
        )
        losses, predictions = read_whole_batch(model, input_ids)
        spans = [slice(row.start - 1, len(row.tokens) - 1) for row in request.rows]
        if len(spans) == 1:
            scored = request.rows[0].tokens[request.rows[0].start :]
            correct.append(predictions[0, spans[0]].tolist() == list(scored))
        else:
            means = [loss[span].mean().item() for loss, span in zip(losses, spans, strict=True)]
            correct.append(means.index(min(means)) == request.gold)
    return correct


def timed(answer, device):
    """Return what a function returns, and the seconds and the processor's seconds that it took."""
    began, processor = time.perf_counter(), time.process_time()
    result = answer()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - began, time.process_time() - processor


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="folder of a CORE bundle")
    parser.add_argument("--model", help="checkpoint to measure instead of a random GPT-2")
    parser.add_argument("--tasks", nargs="*", help="labels of the tasks to measure, all by default")
    parser.add_argument("--max-per-task", type=int, default=20)
    parser.add_argument("--batch-size", type=int, help="sequences per forward pass, at most; by memory if left out")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--vocab-size", type=int, default=32768)
    args = parser.parse_args()

    if args.model:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32").eval()
        tokenizer = AutoTokenizer.from_pretrained(args.model)
    else:
        tokenizer = build_tokenizer(args.bundle, args.vocab_size)
        model = build_model(args.depth, args.context, args.vocab_size)

    model.to("cuda" if torch.cuda.is_available() else "cpu")

    seconds, processor = {"usual": 0.0, "ours": 0.0}, {"usual": 0.0, "ours": 0.0}
    examples = differ = 0
    for number, task in enumerate(load_bundle(args.bundle).select(args.tasks)):
        ways = {
            "usual": lambda task=task: answer_by_example(model, tokenizer, task, args.max_per_task),
            "ours": lambda task=task: [
                answer.correct
                for answer in answer_task(
                    model, tokenizer, task, max_per_task=args.max_per_task, batch_size=args.batch_size
                )
            ],
        }
        answers, clock = {}, {}
        for name in sorted(ways, reverse=number % 2 == 0):
            answers[name], clock[name], cpu = timed(ways[name], model.device)
            seconds[name] += clock[name]
            processor[name] += cpu
        differ += sum(one != other for one, other in zip(answers["usual"], answers["ours"], strict=True))
        examples += len(answers["ours"])
        ratio = clock["usual"] / clock["ours"]
        print(f"{task.label:32} {clock['usual']:8.2f} s {clock['ours']:8.2f} s {ratio:6.1f}×", flush=True)
    print(
        json.dumps(
            {
                "benchmark": "core",
                "parameters": model.num_parameters(),
                "vocab_size": model.config.vocab_size,
                "context": context_length(model),
                "threads": torch.get_num_threads(),
                "examples": examples,
                "device": str(model.device),
                "examples_per_second": round(examples / seconds["ours"], 2),
                "usual_examples_per_second": round(examples / seconds["usual"], 2),
                "speedup": round(seconds["usual"] / seconds["ours"], 2),
                "cpu_speedup": round(processor["usual"] / processor["ours"], 2),
                "answers_differ": differ,
            }
        )
    )


if __name__ == "__main__":
    main()
