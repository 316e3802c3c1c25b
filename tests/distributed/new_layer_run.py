"""A short training of a grown layer alone, on whatever engine it is launched with; leaves the weights."""

import json

from engine_run import Blocks, build_model, pretend_to_be_on_an_accelerator
from safetensors.torch import save_file
from transformers import GPT2LMHeadModel

from hf_progressive import frozen_after_growth, grow_checkpoint
from hf_progressive.training.trainer import ProgressiveTrainer, ProgressiveTrainingArguments


def grow(folder):
    """Grow the model by a layer, into `child`."""
    build_model().save_pretrained(folder / "parent")
    grow_checkpoint(folder / "parent", folder / "child", {"n_layer": 3}, verify=False, progress=False)


def train(child, output, *, batch, resume=False, fsdp=False, **changes):
    """Train the new layer; leave `result-0.json` and the whole `weights.safetensors`."""
    arguments = ProgressiveTrainingArguments(
        output_dir=str(output), per_device_train_batch_size=batch, learning_rate=1e-2, weight_decay=0.1, max_steps=4,
        report_to="none", disable_tqdm=True, max_grad_norm=0.5, **{"save_strategy": "no", "use_cpu": True} | changes,
    )  # fmt: skip
    model = GPT2LMHeadModel.from_pretrained(child)
    callbacks = frozen_after_growth(model, child)
    if fsdp:
        pretend_to_be_on_an_accelerator()
    trainer = ProgressiveTrainer(model, arguments, train_dataset=Blocks(), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if arguments.process_index == 0:
        kind = {"engine": str(trainer.accelerator.distributed_type), "processes": arguments.world_size}
        (output / "result-0.json").write_text(json.dumps(kind))
        save_file({name: tensor.clone() for name, tensor in state.items()}, output / "weights.safetensors")
