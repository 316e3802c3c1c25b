"""Small models of the stock classes, one for each task, with a batch of examples of different lengths."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import transformers

VOCABULARY, LABELS = 61, 3
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
}
VIT = {key: BERT[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 24,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
RESNET = {"embedding_size": 6, "hidden_sizes": [6, 8], "depths": [1, 1], "layer_type": "basic"}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24, "pad_token_id": 0}


@dataclass(frozen=True, kw_only=True)
class TaskCase:
    """A class, its config and what its labels look like."""

    model: str
    config: Any
    labels: str
    together: bool = True
    """Whether the examples of a batch are taken together."""


def _bert(**changes):
    return transformers.BertConfig(**BERT, **changes)


CASES = {
    "masked": TaskCase(model="BertForMaskedLM", config=_bert(), labels="some tokens"),
    "tokens": TaskCase(model="BertForTokenClassification", config=_bert(num_labels=LABELS), labels="tokens"),
    "class": TaskCase(model="BertForSequenceClassification", config=_bert(num_labels=LABELS), labels="class"),
    "switches": TaskCase(
        model="BertForSequenceClassification",
        config=_bert(num_labels=LABELS, problem_type="multi_label_classification"),
        labels="switches",
    ),
    "number": TaskCase(model="BertForSequenceClassification", config=_bert(num_labels=1), labels="number"),
    "answer": TaskCase(model="BertForQuestionAnswering", config=_bert(), labels="span"),
    "causal-class": TaskCase(
        model="GPT2ForSequenceClassification",
        config=transformers.GPT2Config(**GPT2, num_labels=LABELS),
        labels="class",
    ),
    "seq2seq": TaskCase(
        model="BartForConditionalGeneration", config=transformers.BartConfig(**BART), labels="decoder"
    ),
    "seq2seq-t5": TaskCase(
        model="T5ForConditionalGeneration",
        config=transformers.T5Config(**T5, decoder_start_token_id=0, pad_token_id=0),
        labels="decoder",
        together=False,  # its relative positions run once for all examples
    ),
    "choice": TaskCase(model="BertForMultipleChoice", config=_bert(), labels="choice", together=False),
    "image": TaskCase(
        model="ViTForImageClassification",
        config=transformers.ViTConfig(**VIT, image_size=8, patch_size=4, num_labels=LABELS),
        labels="image",
    ),
    "image-conv": TaskCase(
        model="ResNetForImageClassification",
        config=transformers.ResNetConfig(**RESNET, num_labels=LABELS),
        labels="image",
    ),
}


def build(name):
    """The model in float64, away from its initial zeros and ones."""
    torch.manual_seed(0)
    case = CASES[name]
    model = getattr(transformers, case.model)(copy.deepcopy(case.config)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def examples(name, count=5, length=7):
    """A batch whose sequences have lengths from 3 to `length`, padded, each with its labels."""
    generator = torch.Generator().manual_seed(1)

    def ids(*shape, top=VOCABULARY, least=3):
        return torch.randint(least, top, shape, generator=generator)

    labels = CASES[name].labels
    if labels == "image":
        pixels = torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=generator)
        return {"pixel_values": pixels, "labels": ids(count, top=LABELS, least=0)}
    if labels == "choice":
        return {"input_ids": ids(count, 2, length), "labels": ids(count, top=2, least=0)}
    lengths = 3 + torch.arange(count) % (length - 2)
    mask = (torch.arange(length) < lengths[:, None]).long()  # (B, T)
    batch = {"input_ids": ids(count, length).where(mask == 1, 0), "attention_mask": mask}
    if labels == "some tokens":
        masked = (torch.rand(count, length, generator=generator) < 0.4).scatter(1, torch.zeros(count, 1).long(), 1)
        batch["labels"] = batch["input_ids"].masked_fill(~masked | (mask == 0), -100)
    elif labels == "tokens":
        batch["labels"] = ids(count, length, top=LABELS, least=0).masked_fill(mask == 0, -100)
    elif labels == "class":
        batch["labels"] = ids(count, top=LABELS, least=0)
    elif labels == "switches":
        batch["labels"] = ids(count, LABELS, top=2, least=0).double()
    elif labels == "number":
        batch["labels"] = torch.randn(count, dtype=torch.float64, generator=generator)
    elif labels == "span":
        batch |= {"start_positions": ids(count, top=3, least=0), "end_positions": ids(count, top=3, least=0) + 1}
    else:
        batch["labels"] = ids(count, 4)
        batch["labels"][::2, 3] = -100
    return batch


def one_example(batch, row):
    """A batch of one."""
    return {key: value[row : row + 1] for key, value in batch.items()}


def target_counts(name, batch):
    """The number of targets of each example."""
    if CASES[name].labels == "span":
        return torch.full((len(batch["input_ids"]),), 2)
    labels = batch["labels"]
    return (labels != -100).reshape(len(labels), -1).sum(1)
