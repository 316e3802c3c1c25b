"""Should the entries that growth adds move faster than those that were inherited?

One chain of a study's ladder, one seed: every grown rung trains for a share of its cold budget, once for each factor
by which the updates of its new entries are stretched (1 is ordinary training). As the next one's parent it trains for
the headline recipe's `parent_fraction`, unstretched.

    python examples/studies/books_screen/new_entries.py configs/study_books.yaml --output-dir runs/new_entries \
        --set 'ladder.data.files=[books-train.parquet]' 'ladder.data.validation_files=[books-validation.parquet]'
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, TrainerCallback

from hf_progressive.config import load_study_config
from hf_progressive.data import prepare_corpus
from hf_progressive.growth import grow_checkpoint, plan_growth
from hf_progressive.growth.reader import CheckpointReader
from hf_progressive.planning.ladder_plan import plan_ladder
from hf_progressive.training.checkpoints import write_fresh
from hf_progressive.training.training_run import TrainingRun, schedule_steps, train_run


class StretchUpdates(TrainerCallback):
    """Multiply every optimizer step by a factor where an entry is new. For one process that holds the whole model.

    Args:
        is_new: Masks of the parameters' shapes, by name.
        factor: The factor.
    """

    def __init__(self, is_new, factor):
        self.is_new, self.factor = is_new, factor
        self.before = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Remember where the weights are."""
        self.before = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters() if self.is_new[name].any()
        }

    @torch.no_grad()
    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Go on in the step's own direction."""
        for name, parameter in model.named_parameters():
            if name in self.before:
                step = parameter - self.before[name]
                parameter.add_(torch.where(self.is_new[name], (self.factor - 1) * step, 0.0))


def new_entries(parent, child):
    """Return the masks of a grown checkpoint's new entries, by name."""
    plan = plan_growth(AutoConfig.from_pretrained(parent), AutoConfig.from_pretrained(child))
    specs = CheckpointReader(parent).specs
    inherited = plan.map_diagonal({name: torch.ones(spec.shape) for name, spec in specs.items()})
    return {name: mask == 0 for name, mask in inherited.items()}


def main():
    parser = argparse.ArgumentParser(description="Train grown rungs whose new entries take longer steps.")
    parser.add_argument("config")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY.PATH=VALUE")
    parser.add_argument("--factors", nargs="+", type=float, default=[1.0, 3.0, 10.0])
    parser.add_argument("--share", type=float, default=0.2, help="of the cold budget, for which children train")
    parser.add_argument("--rungs", type=int, default=3, help="how many of the ladder's rungs, the first included")
    options = parser.parse_args()
    config = load_study_config(options.config, options.set)
    training, root = config.ladder.training, options.output_dir
    corpus = prepare_corpus(config.ladder.data, config.ladder.model.context, root / "data")
    parent, first_block = None, 0
    for index, rung in enumerate(plan_ladder(config.ladder).rungs[: options.rungs]):

        def train(title, start, share, callbacks=(), rung=rung, first_block=first_block):
            run = TrainingRun(
                title=f"{rung.name}, {title}",
                init=start,
                folder=root / rung.name / title,
                training=training,
                learning_rate=training.learning_rate,
                steps=round(share * rung.size.steps),
                first_block=first_block,
                flops_per_token=rung.size.flops_per_token,
                warmup_steps=schedule_steps(training, rung.size.steps)[0],
            )
            result, trainer = train_run(run, corpus, callbacks=callbacks)
            print(f"{run.title}, {share:g} of the budget: {result.bits_per_byte:.4f} bits per byte", flush=True)
            trainer.save_pretrained_whole(run.folder / "final")
            return run.folder / "final"

        init = root / rung.name / "init"
        if parent is None:
            write_fresh(rung.size.config, corpus.tokenizer, init, seed=index)
            parent = train("cold", init, 1.0)
        else:
            grow_checkpoint(parent, init, rung.target, seed=index, overwrite=True)
            is_new = new_entries(parent, init)
            for factor in options.factors:
                train(f"factor {factor:g}", init, options.share, [StretchUpdates(is_new, factor)])
            parent = train("parent", init, config.headline_recipe.parent_fraction)
        first_block += -(-rung.size.tokens // corpus.context)


if __name__ == "__main__":
    sys.exit(main())
