"""What several processes validate is what one would, also where the sequences do not fill the last batch."""

import datetime
import multiprocessing
import os

import pytest
import torch
from accelerate import PartialState
from test_processes import free_port
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, default_data_collator

from hf_progressive.data.blocks import as_block
from hf_progressive.training.trainer import ProgressiveTrainer, ProgressiveTrainingArguments

CONTEXT, BATCH = 16, 4


def build_model():
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 64, "n_positions": CONTEXT}
    return GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.5, bos_token_id=0, eos_token_id=0))


def build_blocks(count):
    drawn = torch.randint(64, (count, CONTEXT), generator=torch.Generator().manual_seed(1))
    return [as_block(tokens) for tokens in drawn]


def expected(count):
    """The mean over blocks of each one's own loss, by the stock class."""
    model = build_model().eval()
    with torch.no_grad():
        losses = [model(**{name: value[None] for name, value in b.items()}).loss for b in build_blocks(count)]
    return float(torch.stack(losses).double().mean())


def evaluate(kind, folder, count):
    args = ProgressiveTrainingArguments(
        output_dir=str(folder), use_cpu=True, per_device_eval_batch_size=BATCH, report_to="none", disable_tqdm=True,
        prediction_loss_only=True,
    )  # fmt: skip
    trainer = kind(build_model(), args, eval_dataset=build_blocks(count), data_collator=default_data_collator)
    return trainer.evaluate()["eval_loss"]


def in_processes(number, work):
    """Run `work(queue)` in so many gloo processes; return what the first put into the queue."""
    context, port = multiprocessing.get_context("fork"), str(free_port())
    queue = context.Queue()

    def process(rank):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(number), MASTER_ADDR="127.0.0.1")
        os.environ.update(MASTER_PORT=port)
        PartialState._reset_state()
        PartialState(cpu=True, timeout=datetime.timedelta(seconds=60))
        found = work()
        if rank == 0:
            queue.put(found)
        torch.distributed.destroy_process_group()

    processes = [context.Process(target=process, args=(rank,)) for rank in range(number)]
    for one in processes:
        one.start()
    found = queue.get(timeout=120)
    for one in processes:
        one.join(timeout=60)
    assert [one.exitcode for one in processes] == [0] * number
    return found


def test_three_processes_validate_every_block_once(tmp_path):
    """1: two processes have only repetitions; 5, 9: one or more; 12, 24: none; 13, 26: behind whole batches."""
    counts = [1, 5, 9, 12, 13, 24, 26]

    def work():
        ours = [evaluate(ProgressiveTrainer, tmp_path, count) for count in counts]
        return ours, evaluate(Trainer, tmp_path, 5)

    ours, stock = in_processes(3, work)
    for count, loss in zip(counts, ours, strict=True):
        assert loss == pytest.approx(expected(count), rel=1e-6), count
    assert stock != pytest.approx(expected(5), rel=1e-3)  # once this fails, the class is no longer needed


def test_one_process_validates_as_trainer_does(tmp_path):
    for count in (3, 5):
        loss = evaluate(ProgressiveTrainer, tmp_path, count)
        assert loss == evaluate(Trainer, tmp_path, count) == pytest.approx(expected(count), rel=1e-6)
