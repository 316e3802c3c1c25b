"""CORE the slow way: one example, one option, one whole forward pass at a time, in float64.

It reads the bundle, renders, tokenizes, cuts and judges by itself and shares nothing with the package. GPT-2 is
computed in NumPy, which takes a tenth of the stock class's time where the model is tiny; a test compares the two.
"""

import json
import math
import random
from pathlib import Path

import numpy as np
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


class NaiveGPT2:
    """The logits of a GPT-2 in float64, position by layer, as its paper's code has it."""

    def __init__(self, model):
        config = model.config
        assert config.activation_function == "gelu_new"
        self.heads, self.layers, self.epsilon = config.n_head, config.n_layer, config.layer_norm_epsilon
        self.weights = {
            name.removeprefix("transformer."): value.detach().double().numpy()
            for name, value in model.state_dict().items()
        }

    def __call__(self, tokens):
        w, length = self.weights, len(tokens)
        x = w["wte.weight"][tokens] + w["wpe.weight"][:length]  # (T, D)
        future = np.triu(np.full((length, length), -np.inf), 1)  # (T, T)
        for layer in range(self.layers):
            h = f"h.{layer}."
            qkv = self.linear(self.normed(x, h + "ln_1"), h + "attn.c_attn")  # (T, 3D)
            q, k, v = (part.reshape(length, self.heads, -1).swapaxes(0, 1) for part in np.split(qkv, 3, axis=1))
            scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1]) + future  # (heads, T, T)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed = (weights / weights.sum(axis=-1, keepdims=True) @ v).swapaxes(0, 1).reshape(length, -1)  # (T, D)
            x = x + self.linear(mixed, h + "attn.c_proj")
            inner = self.linear(self.normed(x, h + "ln_2"), h + "mlp.c_fc")  # (T, 4D)
            gelu = 0.5 * inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
            x = x + self.linear(gelu, h + "mlp.c_proj")
        return self.normed(x, "ln_f") @ w["lm_head.weight"].T  # (T, vocabulary)

    def linear(self, x, name):
        return x @ self.weights[name + ".weight"] + self.weights[name + ".bias"]

    def normed(self, x, name):
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.epsilon)
        return centred / scale * self.weights[name + ".weight"] + self.weights[name + ".bias"]


def stock(model):
    """The logits of any model, as its own class computes them in its own precision."""

    @torch.no_grad()
    def logits_of(tokens):
        return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()

    return logits_of


def read_one(model, tokens, count):
    """Mean loss and arg max hits of the last `count` tokens, from one whole forward pass."""
    logits = model(tokens)  # (T, vocabulary)
    losses, hits = [], []
    for at in range(max(len(tokens) - count, 1), len(tokens)):
        row = logits[at - 1] - logits[at - 1].max()
        losses.append(math.log(np.exp(row).sum()) - row[tokens[at]])
        hits.append(int(row.argmax()) == tokens[at])
    return math.fsum(losses) / len(losses), all(hits)


def reference_answers(model, tokenizer, bundle_dir, label, context, max_per_task=None):
    """Yield per example: whether it is right, whether it was cut, and the mean loss of each option."""
    entry, items = read_task(bundle_dir, label)
    items = items[:max_per_task]
    naive = NaiveGPT2(model)
    for index, item in enumerate(items):
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        sequences = [bos + tokenizer.encode(text, add_special_tokens=False) for text in render(entry, items, index)]
        counts = scored_tokens(entry, sequences)
        rows = sequences[: len(counts)]
        scores = [read_one(naive, row[-context:], n) for row, n in zip(rows, counts, strict=True)]
        losses = [loss for loss, _ in scores]
        language = entry["icl_task_type"] == "language_modeling"
        correct = scores[0][1] if language else losses.index(min(losses)) == item["gold"]
        yield correct, any(len(row) > context for row in rows), losses
