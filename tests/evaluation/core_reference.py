"""CORE the slow way: one example, one option, one whole forward pass at a time, in the model's own precision.

It reads the bundle, renders, tokenizes, cuts and judges by itself and shares nothing with the package.
"""

import json
import math
import random
from pathlib import Path

import torch
import yaml


def read_task(bundle_dir, label):
    """The task's entry in core.yaml and its examples, shuffled."""
    (entry,) = [
        entry
        for entry in yaml.safe_load(Path(bundle_dir, "core.yaml").read_text())["icl_tasks"]
        if entry["label"] == label
    ]
    with open(Path(bundle_dir, "eval_data", entry["dataset_uri"]), encoding="utf-8") as lines:
        items = [json.loads(line) for line in lines]
    random.Random(1337).shuffle(items)
    return entry, items


def render(entry, items, index):
    """The texts of example `index`: per option the whole, and for language modelling the bare prompt as well."""
    delimiter, kind = entry.get("continuation_delimiter", " "), entry["icl_task_type"]
    others = [i for i in range(len(items)) if i != index]
    shown = random.Random(1234 + index).sample(others, min(entry["num_fewshot"][0], len(others)))
    head, item = "", items[index]
    for other in (items[i] for i in shown):
        if kind == "multiple_choice":
            head += other["query"] + delimiter + other["choices"][other["gold"]]
        elif kind == "schema":
            head += other["context_options"][other["gold"]] + delimiter + other["continuation"]
        else:
            head += other["context"].strip() + delimiter + other["continuation"]
        head += "\n\n"
    if kind == "multiple_choice":
        return [head + item["query"] + delimiter + choice for choice in item["choices"]]
    if kind == "schema":
        return [head + context + delimiter + item["continuation"] for context in item["context_options"]]
    bare = head + item["context"].strip() + delimiter
    return [bare + item["continuation"], bare.rstrip()]


def scored_tokens(entry, sequences):
    """How many tokens at the end of each sequence are scored."""
    kind, shortest = entry["icl_task_type"], min(map(len, sequences))
    if kind == "schema":
        alike = 0
        while alike < shortest and len({sequence[-1 - alike] for sequence in sequences}) == 1:
            alike += 1
        return [max(alike, 1)] * len(sequences)
    alike = 0
    while alike < shortest and len({sequence[alike] for sequence in sequences}) == 1:
        alike += 1
    if kind == "multiple_choice":
        return [len(sequence) - min(alike, shortest - 1) for sequence in sequences]
    return [max(len(sequences[0]) - alike, 1)]


@torch.no_grad()
def read_one(model, tokens, count):
    """Losses and arg max hits of the last `count` tokens, from one whole forward pass."""
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0]  # (tokens, vocabulary)
    log_probabilities = logits.log_softmax(dim=-1)
    losses, hits = [], []
    for at in range(max(len(tokens) - count, 1), len(tokens)):
        losses.append(-log_probabilities[at - 1, tokens[at]].item())
        hits.append(logits[at - 1].argmax().item() == tokens[at])
    return math.fsum(losses) / len(losses), all(hits)


def reference_answers(model, tokenizer, bundle_dir, label, context, max_per_task=None):
    """Yield per example: whether it is right, whether it was cut, and the mean loss of each option."""
    entry, items = read_task(bundle_dir, label)
    items = items[:max_per_task]
    for index, item in enumerate(items):
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        sequences = [bos + tokenizer.encode(text, add_special_tokens=False) for text in render(entry, items, index)]
        counts = scored_tokens(entry, sequences)
        rows = sequences[: len(counts)]
        scores = [read_one(model, row[-context:], n) for row, n in zip(rows, counts, strict=True)]
        losses = [loss for loss, _ in scores]
        language = entry["icl_task_type"] == "language_modeling"
        correct = scores[0][1] if language else losses.index(min(losses)) == item["gold"]
        yield correct, any(len(row) > context for row in rows), losses
