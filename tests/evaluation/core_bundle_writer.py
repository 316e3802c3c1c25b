"""Small CORE bundles and tokenizers, made on the spot."""

import json
import random

import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = ["stone", "river", "light", "garden", "winter", "paper", "silver", "mountain", "letter", "window", "candle"]


def write_bundle(folder, tasks, absent=()):
    """Write a bundle.

    `tasks` maps a label to (kind, shots, delimiter or None, baseline in per cent, items); `absent` lists labels that
    core.yaml names and that have no data.
    """
    entries, baselines = [], ["Eval Task,Random baseline"]
    for label, (kind, shots, delimiter, baseline, items) in tasks.items():
        entry = {"label": label, "dataset_uri": f"{kind}/{label}.jsonl", "num_fewshot": [shots], "icl_task_type": kind}
        entries.append(entry if delimiter is None else entry | {"continuation_delimiter": delimiter})
        baselines.append(f"{label},{baseline}")
        path = folder / "eval_data" / entry["dataset_uri"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    for label in absent:
        entries.append(
            {"label": label, "dataset_uri": f"{label}.jsonl", "num_fewshot": [0], "icl_task_type": "schema"}
        )
    (folder / "core.yaml").write_text(yaml.safe_dump({"icl_tasks": entries}), encoding="utf-8")
    (folder / "eval_meta_data.csv").write_text("\n".join(baselines) + "\n", encoding="utf-8")
    return folder


def phrase(rng, low, high):
    return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))


def varied_tasks(count=24):
    """Tasks of each kind whose items differ in length, repeat options and extend one another."""
    rng = random.Random(5)
    choices = [
        {"query": phrase(rng, 1, 12), "choices": [phrase(rng, 1, 5) for _ in range(4)], "gold": rng.randrange(4)}
        for _ in range(count)
    ]
    choices[0]["choices"][3] = choices[0]["choices"][1]
    choices[1]["choices"] = ["stone", "stone river"]
    choices[1]["gold"] = 1
    choices[2]["choices"] = ["river light", "river light"]
    choices[2]["gold"] = 0
    letters = [
        {"query": phrase(rng, 2, 9) + "\nAnswer:", "choices": ["A", "B", "C", "D"], "gold": rng.randrange(4)}
        for _ in range(count)
    ]
    schema = [
        {
            "context_options": [f"{(stem := phrase(rng, 1, 8))} {phrase(rng, 1, 3)}", f"{stem} {phrase(rng, 1, 3)}"],
            "continuation": phrase(rng, 1, 6),
            "gold": rng.randrange(2),
        }
        for _ in range(count)
    ]
    language = [{"context": phrase(rng, 1, 12) + " ", "continuation": phrase(rng, 1, 2)} for _ in range(count)]
    return {
        "arc_easy": ("multiple_choice", 3, "\nAnswer: ", 25, choices),
        "commonsense_qa": ("multiple_choice", 2, None, 40.3, letters),
        "winograd": ("schema", 1, None, 50, schema),
        "jeopardy": ("language_modeling", 3, "\nAnswer: ", 0, language),
    }


def train_tokenizer(texts, vocab_size=320):
    """A byte-level BPE that puts its beginning-of-sequence token before a text itself, if it is let."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|bos|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|bos|>")


def word_tokenizer(words):
    """One token per word, whatever the blanks; the first word is the beginning of the sequence."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=words[0])
