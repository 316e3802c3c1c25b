"""A corpus as the ladder uses it: one order for every training run, whatever the number of processes."""

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, default_data_collator

from hf_progressive.data import prepare_corpus, rung_blocks

CONTEXT = 16


@pytest.fixture
def corpus(write, texts, tmp_path):
    return prepare_corpus(write(texts), CONTEXT, tmp_path / "data")


def test_consecutive_rungs_read_the_corpus_once(corpus):
    length = len(corpus.train)
    whole = [block["input_ids"].tolist() for block in rung_blocks(corpus, 0, length)]
    rungs = [(0, 10), (10, 25), (35, length - 35)]
    parts = [block["input_ids"].tolist() for span in rungs for block in rung_blocks(corpus, *span)]
    assert parts == whole


def test_span_tells_where_data_repeat(corpus):
    length = len(corpus.train)
    cases = {
        (0, length): (0, 0, None),
        (0, length + 1): (0, 1, length * CONTEXT),
        (length - 3, 10): (0, 1, 3 * CONTEXT),
        (length, 10): (1, 1, 0),
        (2 * length + 1, 2 * length): (2, 4, 0),
    }
    for (first, blocks), (first_epoch, last_epoch, repeats) in cases.items():
        span = corpus.span(first, blocks)
        assert (span["first_epoch"], span["last_epoch"]) == (first_epoch, last_epoch)
        assert span["repeats_from_token"] == repeats
        # Independently: the first block of the range that lies past the corpus's end.
        seen = set(range(first)) if first < length else set(range(length))
        repeated = next(
            (i for i in range(blocks) if (first + i) % length in seen | set(range(first, first + i))), None
        )
        assert repeats == (None if repeated is None else repeated * CONTEXT)
        assert (span["block_tokens"], span["corpus_blocks"]) == (CONTEXT, length)
        assert span["fingerprint"] == corpus.fingerprint


def test_trainer_reads_the_blocks_in_their_order(corpus, tmp_path):
    args = TrainingArguments(
        output_dir=tmp_path / "out",
        per_device_train_batch_size=3,
        train_sampling_strategy="sequential",
        use_cpu=True,
        report_to=[],
    )
    model = GPT2LMHeadModel(GPT2Config(vocab_size=280, n_positions=CONTEXT, n_embd=8, n_layer=1, n_head=1))
    blocks = rung_blocks(corpus, 5, 12)
    trainer = Trainer(model=model, args=args, train_dataset=blocks, data_collator=default_data_collator)
    batches = [batch["input_ids"].cpu() for batch in trainer.get_train_dataloader()]
    assert torch.equal(torch.cat(batches), torch.stack([corpus.train[i]["input_ids"] for i in range(5, 17)]))


@pytest.mark.parametrize(("processes", "accumulated"), [(1, 4), (2, 2), (4, 1)])
def test_processes_share_the_same_global_batches(processes, accumulated):
    # What `accelerate` makes of a sequential sampler: batches dealt out in turn.
    def batches(process):
        sampler = BatchSampler(SequentialSampler(range(48)), batch_size=2, drop_last=False)
        return list(BatchSamplerShard(sampler, num_processes=processes, process_index=process))

    shards = [batches(process) for process in range(processes)]
    for step in range(6):
        parts = [shard[step * accumulated + i] for i in range(accumulated) for shard in shards]
        assert sorted(index for part in parts for index in part) == list(range(8 * step, 8 * step + 8))
