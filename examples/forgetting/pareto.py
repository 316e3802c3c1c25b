"""Train a model on another domain without losing the old one: what each way gives up, and what it keeps.

A small GPT-2 learns English and goes on with Python, and once with another language, at a full learning rate: freely,
and with every form of Φ and every free baseline at three strengths. Measured is the loss on both domains. Drawn are
the fronts: further left keeps more English, further down learns more of the new. A table says, for each way at its
best strength, the mean of both losses, with the difference from free training, seed by seed.

    python examples/forgetting/pareto.py --output pareto       # offline: the standard library's texts
    python examples/forgetting/pareto.py --english books.parquet --language lettres.txt --output pareto
    python examples/forgetting/pareto.py --translations fr --output pareto    # natural French, as programs speak it

--translations reads the message catalogues of installed packages and of the system, or of the folders in --catalogues,
as `pip install --no-deps --target french django gramps sphinx spyder wagtail` makes one. Without any, the other
language is an invented one: English in words of its own, in reversed order.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from domains import (
    CONTEXT,
    INSTALLED_CATALOGUES,
    in_invented_language,
    library_texts,
    pack,
    read_texts,
    translated_texts,
)
from forms import FORMS, INTERPOLATION, interpolated, knowledge_of
from picture import draw
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PrinterCallback, set_seed

from hf_progressive.data.tokenizer import train_tokenizer
from hf_progressive.storage import write_json
from hf_progressive.training.trainer import ProgressiveTrainer, ProgressiveTrainingArguments

BATCH = 16
FORM_OF = {form.name: form for form in (INTERPOLATION, *FORMS)}


class Blocks(Dataset):
    """Token blocks (n, CONTEXT) as a causal language model trains on them."""

    def __init__(self, blocks: Tensor) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


def train(model: PreTrainedModel, blocks: Tensor, *, steps: int, rate: float, seed: int, **held: Any) -> Any:
    """Train for a number of optimizer steps with a decay to 0; return the trainer."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ProgressiveTrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=rate,
            lr_scheduler_type="linear",
            warmup_steps=max(1, steps // 20),
            adam_beta2=0.95,  # so that the second moment is that of the decay's end
            save_strategy="no",
            logging_steps=5,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=seed,
        )
        trainer = ProgressiveTrainer(model, arguments, train_dataset=Blocks(blocks), **held)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer


@torch.no_grad()
def loss_of(model: PreTrainedModel, blocks: Tensor) -> float:
    """Return the mean loss in nats per token."""
    model.eval()
    return statistics.fmean(float(model(input_ids=ids, labels=ids).loss) for ids in blocks.split(64))


def with_replay(new: Tensor, old: Tensor, share: float, count: int, seed: int) -> Tensor:
    """Return a number of blocks, a share of them old, in an order of their own."""
    generator = torch.Generator().manual_seed(seed)
    replayed = round(share * count)
    rows = torch.randperm(len(new), generator=generator)[: count - replayed]
    chosen = torch.randperm(len(old), generator=generator)[:replayed]
    mixed = torch.cat([new[rows], old[chosen]])
    return mixed[torch.randperm(len(mixed), generator=generator)]


def carry_out(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Train a parent on English and continue it on one other domain in every way; return a row for each."""
    torch.set_num_threads(1)
    seed, options = job["seed"], job["options"]
    (old, old_held), (new, new_held) = job["old"], job["new"]
    set_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(**job["config"]))
    trainer = train(model, old, steps=options["steps"][0], rate=options["rates"][0], seed=seed)
    norms = {log["step"]: log["grad_norm"] for log in trainer.state.log_history if "grad_norm" in log}
    known = knowledge_of(model, trainer.optimizer, old, norms, start=job["config"]["eos_token_id"], batch=BATCH)
    rows = []

    def add(form: str, strength: float, model: PreTrainedModel, began: float) -> None:
        row = {"transfer": job["transfer"], "seed": seed, "form": form, "strength": strength}
        row |= {"old": loss_of(model, old_held), "new": loss_of(model, new_held)}
        rows.append(row | {"seconds": round(time.monotonic() - began, 2)})
        print(rows[-1], file=sys.stderr, flush=True)

    add("parent", 0.0, known.parent, time.monotonic())
    for name, strength in [("free", 0.0), *(way for way in job["ways"] if way[0] != INTERPOLATION.name)]:
        began = time.monotonic()
        model.load_state_dict(known.anchor, strict=False)
        held = {"rate": 1.0, "replay": 0.0} if name == "free" else FORM_OF[name].settings(known, strength)
        count, share = options["steps"][1] * BATCH, held.pop("replay")
        rate = options["rates"][1] * held.pop("rate")
        blocks = with_replay(new, old, share, min(count, len(new)), seed)
        train(model, blocks, steps=options["steps"][1], rate=rate, seed=seed, **held)
        add(name, strength, model, began)
        if name == "free":
            for share in (share for other, share in job["ways"] if other == INTERPOLATION.name):
                add(INTERPOLATION.name, share, interpolated(model, known, share), time.monotonic())
    return rows


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each transfer, way and strength the means over seeds, and the paired gain over free training."""
    summary = []
    for transfer, form, strength in dict.fromkeys((row["transfer"], row["form"], row["strength"]) for row in rows):
        own, free = (
            {row["seed"]: row for row in rows if (row["transfer"], row["form"], row["strength"]) == key}
            for key in ((transfer, form, strength), (transfer, "free", 0.0))
        )
        gains = [_both(free[seed]) - _both(row) for seed, row in own.items()]
        summary.append({
            "transfer": transfer, "form": form, "strength": strength, "seeds": len(own),
            **{name: statistics.fmean(row[name] for row in own.values()) for name in ("old", "new", "seconds")},
            "both": statistics.fmean(_both(row) for row in own.values()),
            "gain": statistics.fmean(gains),
            "gain_error": statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else None,
        })  # fmt: skip
    return summary


def _both(row: Mapping[str, Any]) -> float:
    return 0.5 * (row["old"] + row["new"])


def best_of(summary: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return each way at the strength of the lowest mean of both losses, the best way of each transfer first."""
    best: dict[tuple[str, str], Mapping[str, Any]] = {}
    for point in summary:
        key = (point["transfer"], point["form"])
        if key not in best or point["both"] < best[key]["both"]:
            best[key] = point
    return sorted(best.values(), key=lambda point: (point["transfer"], point["both"]))


def print_table(points: Sequence[Mapping[str, Any]]) -> None:
    """Print the ways at their best strengths."""
    print(f"{'transfer':28} {'way':26} {'strength':>8} {'old':>7} {'new':>7} {'mean':>7} {'gain':>15}  needs")
    for point in points:
        needs = FORM_OF[point["form"]].needs if point["form"] in FORM_OF else ""
        error = "" if point["gain_error"] is None else f" ± {point['gain_error']:.3f}"
        print(
            f"{point['transfer']:28} {point['form']:26} {point['strength']:8g} {point['old']:7.3f} {point['new']:7.3f}"
            f" {point['both']:7.3f} {point['gain']:7.3f}{error:8}  {needs}"
        )


def parse_way(text: str) -> tuple[str, float]:
    """Read a way's name and strength.

    >>> parse_way("EWC=30")
    ('EWC', 30.0)
    """
    name, _, strength = text.rpartition("=")
    if name not in FORM_OF:
        raise argparse.ArgumentTypeError(f"{text!r} begins with none of {', '.join(map(repr, FORM_OF))}")
    return name, float(strength)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("pareto"), help="folder for pareto.json and pareto.png")
    parser.add_argument("--english", type=Path, help="a .txt file, or a .parquet file with a column text")
    parser.add_argument("--language", type=Path, help="likewise, of the other language")
    parser.add_argument("--translations", help="a locale (fr): the other language is what programs say in it")
    parser.add_argument(
        "--catalogues", type=Path, nargs="+", default=INSTALLED_CATALOGUES,
        help="folders with the programs' message catalogues (default: of installed packages and of the system)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--characters", type=int, default=600_000, help="of each domain, at most")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--steps", type=int, nargs=2, default=[400, 100], help="on English, and on the new domain")
    parser.add_argument("--rates", type=float, nargs=2, default=[4e-3, 2e-3], help="learning rates of the two")
    parser.add_argument("--to", nargs="+", choices=["python", "language"], default=["python", "language"])
    parser.add_argument(
        "--ways", type=parse_way, nargs="+", metavar="NAME=STRENGTH",
        default=[(form.name, strength) for form in FORM_OF.values() for strength in form.strengths],
        help='such as "EWC=30" (default: every way at each of its strengths)',
    )  # fmt: skip
    parser.add_argument("--processes", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Carry out all trainings, and write pareto.json and pareto.png; the last line on stdout is JSON."""
    options = parse_options()
    prose, code = library_texts(options.characters)
    if options.english is not None:
        prose = list(read_texts(options.english, options.characters))
    invented = options.language is None and options.translations is None
    if invented:
        other, language = [in_invented_language(text) for text in prose[1::2]], "invented language"
    elif options.language is None:
        language = options.translations
        other = translated_texts(language, options.characters, options.catalogues)
    else:
        other, language = list(read_texts(options.language, options.characters)), options.language.stem
    learned = [*prose, *code, *other]
    tokenizer = train_tokenizer(learned, vocab_size=options.vocabulary, training_bytes=4 * options.characters)
    prose = prose[::2] if invented else prose
    english = pack(tokenizer, prose, 128)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"n_layer": options.layers, "n_embd": options.width, "n_head": max(1, options.width // 32)}
    config = {"vocab_size": options.vocabulary, "n_positions": CONTEXT, **sizes, **ends}
    config |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    texts = {"python": ("Python", code), "language": (language, other)}
    domains = {f"English → {texts[to][0]}": pack(tokenizer, texts[to][1], 128) for to in options.to}
    trained = {"steps": options.steps, "rates": options.rates}
    shared = {"old": english, "config": config, "ways": options.ways, "options": trained}
    jobs = [
        {**shared, "seed": seed, "transfer": transfer, "new": blocks}
        for seed in options.seeds
        for transfer, blocks in domains.items()
    ]
    blocks = {name: len(training) for name, (training, _) in {"English": english, **domains}.items()}
    read = [prose, *(texts[to][1] for to in options.to)]
    characters = {name: sum(map(len, documents)) for name, documents in zip(blocks, read, strict=True)}
    print(f"characters: {characters}, blocks of {CONTEXT} tokens to train on: {blocks}", file=sys.stderr)
    settings = json.loads(json.dumps(vars(options), default=str))
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    options.output.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for found in pool.map(carry_out, jobs):
            rows += found
            summary = summarise(rows)
            record = {"settings": settings, "characters": characters, "blocks": blocks}
            record |= {"seconds": time.monotonic() - began, "summary": summary, "rows": rows}
            write_json(options.output / "pareto.json", record)  # after each parent, so that a kill leaves the others
    draw(summary, options.output / "pareto.png")
    print_table(best_of(summary))
    print(json.dumps({"output": str(options.output), "trainings": len(rows), "best": best_of(summary)}))


if __name__ == "__main__":
    main()
