"""Does Φ pay within a ladder, where both sides have the rate that suits them?

Children of one parent train with and without Φ at four peak rates (GPT-2's at six), on a step by depth and a step by
width, for .2 and for .4 of their budget from scratch. The first seed chooses: without Φ the best rate, for each form
of Φ the best λ, source of Ω and rate. The other seeds tell: each choice is trained on them afresh, so that what is
chosen is not judged by the luck that chose it. Everything is at equal tokens; Ω from the optimizer costs nothing, an
estimate 3 % of the shorter child. Started twice on one folder (OMP_NUM_THREADS=1), the two share the work; killed, it
goes on.

    python examples/studies/phi_forms/compare.py --output-dir runs/phi_forms \
        --set 'ladder.data.files=[books-train.parquet]' 'ladder.data.validation_files=[books-validation.parquet]'

`--plan` says how many tokens it takes, and trains nothing: some 90 M in all. Llama's part, seven tenths of them,
took 150 minutes of a core of a machine at other work, GPT-2's 80. `--studies` names one family alone. compared.json
has both.
"""

import argparse
import dataclasses
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging
from trials import FORMS, FREE, Trial, best, trials_of, with_trials

from hf_progressive.config import load_study_config
from hf_progressive.data import Corpus, prepare_corpus
from hf_progressive.distributed.processes import current_processes
from hf_progressive.records.interval import mean_interval
from hf_progressive.storage import finite_or_none, write_json
from hf_progressive.study.model_tasks import model_tasks
from hf_progressive.study.models import FinishedModel
from hf_progressive.study.plan import StudyPlan, plan_study
from hf_progressive.study.progress import Progress
from hf_progressive.study.runner import TaskFolder, run_tasks
from hf_progressive.study.tasks import Task
from hf_progressive.study.work import Worker

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a choice is made for: a family's step, and a child's length."""

    plan: StudyPlan
    """The family's study."""

    step: int
    """0 for the first grown rung."""

    share: float
    """The child's share of its budget from scratch."""

    @property
    def rung(self) -> str:
        """Name of the grown rung."""
        return self.plan.config.measured_rungs[self.step]

    @property
    def where(self) -> dict[str, Any]:
        """Family, rung and share, as a row begins with."""
        return {"family": self.plan.config.ladder.model.family, "rung": self.rung, "share": self.share}

    @property
    def trials(self) -> list[Trial]:
        """What the first seed tries."""
        return trials_of(self.step, self.plan.config.ladder.model.family)

    def child(self, trial: Trial, seed: int) -> FinishedModel:
        """Return the child that a trial makes."""
        lengths = self.plan.children[f"{self.rung}: {trial.name}", self.rung, seed]
        return next(model for model in lengths if model.fraction == self.share)


def cases_of(plans: Sequence[StudyPlan]) -> list[Case]:
    """Return every case, the steps of all families before their next ones."""
    steps, shares = len(plans[0].config.measured_rungs), plans[0].config.child_fractions
    return [
        Case(plan=plan, step=step, share=share)
        for step in range(steps) for plan in plans for share in shares
    ]  # fmt: skip


def tasks_of(models: Sequence[FinishedModel]) -> list[Task]:
    """Return the tasks that make models and all that they come from, baselines left out."""

    def title(model: FinishedModel) -> str:
        phi = model.setup.phi
        form = FREE if phi is None else f"{phi.apply}, {phi.fisher.kind}, λ {phi.ewc_lambda:g}"
        initial, rate = model.initial, model.setup.learning_rate
        return f"{initial.rung.name} {form}, rate {rate:g}, seed {initial.seed}, {model.fraction:g}"

    return model_tasks(models, title)


class Comparison:
    """The models of all cases in one folder."""

    def __init__(self, plans: Sequence[StudyPlan], root: Path, corpus: Corpus | None) -> None:
        self.cases, self.root, self.corpus = cases_of(plans), root, corpus
        self.first, *self.others = plans[0].config.seeds
        self.results = TaskFolder(root, [])

    def tried(self) -> list[FinishedModel]:
        """Return what the first seed trains."""
        return [case.child(trial, self.first) for case in self.cases for trial in case.trials]

    def measured(self, case: Case, trial: Trial, seed: int) -> float:
        """Return a child's bits per byte; infinite where its training failed."""
        return float((self.results.result(case.child(trial, seed).name) or {}).get("bits_per_byte", "inf"))

    def chosen(self, case: Case) -> dict[str, Trial]:
        """Return each form's best trial on the first seed."""
        tried = case.trials
        return {
            form: best([(trial, self.measured(case, trial, self.first)) for trial in tried if trial.form == form])
            for form in (FREE, *FORMS)
        }

    def judged(self) -> list[FinishedModel]:
        """Return what the other seeds train, each step's before the next one's."""
        return [
            case.child(trial, seed)
            for case in self.cases for seed in self.others for trial in self.chosen(case).values()
        ]  # fmt: skip

    def carry_out(self, models: Sequence[FinishedModel]) -> None:
        """Train what is not there yet, beside any other process that does the same."""
        assert self.corpus is not None
        folder = TaskFolder(self.root, tasks_of(models))
        worker, progress = Worker(folder=folder, corpus=self.corpus, state=current_processes()), Progress(folder)
        run_tasks(folder, lambda task: worker.carry_out(task, progress.title(task)), progress.report)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each form against none, over the seeds that did not choose."""
        for case in self.cases:
            chosen = self.chosen(case)
            without = [self.measured(case, chosen[FREE], seed) for seed in self.others]
            for form in FORMS:
                with_phi = [self.measured(case, chosen[form], seed) for seed in self.others]
                both = [(a, b) for a, b in zip(with_phi, without, strict=True) if math.isfinite(a - b)]
                if not both:
                    continue  # their training failed, as the log says
                interval = mean_interval([a - b for a, b in both])
                yield {
                    **case.where,
                    "free_rate": chosen[FREE].rate,
                    "free": [b for _, b in both],
                    **dataclasses.asdict(chosen[form]),
                    "with_phi": [a for a, _ in both],
                    "difference": interval.mean,
                    "low": interval.low,
                    "high": interval.high,
                }

    def tried_rows(self) -> Iterator[dict[str, Any]]:
        """Yield what the first seed measured."""
        for case in self.cases:
            for trial in case.trials:
                measured = finite_or_none(self.measured(case, trial, self.first))
                yield {**case.where, **dataclasses.asdict(trial), "bits_per_byte": measured}

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write what was tried and the rows of the comparison."""
        write_json(self.root / "compared.json", {"compared": rows, "tried": list(self.tried_rows())})


def signed(difference: float) -> str:
    """Return a difference of bits per byte with its sign."""
    return f"{difference:+.4f}".replace("-", "−")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the comparison in Markdown."""
    lines = ["| family | child | share | without Φ, best rate | Φ, at its best | difference | 95 % |"]
    lines.append("|---|---|---:|---|---|---:|---:|")
    for row in rows:
        free = sum(row["free"]) / len(row["free"])
        phi = f"{row['form']}, Ω {row['kind']}, λ {row['weight']:g}, {row['rate']:g}"
        ends = "–" if row["low"] is None else f"{signed(row['low'])} to {signed(row['high'])}"
        where = f"| {row['family']} | {row['rung']} | {row['share']:g} | {free:.4f}, {row['free_rate']:g} "
        lines.append(where + f"| {phi} | {signed(row['difference'])} | {ends} |")
    return "\n".join(lines)


def cost_line(comparison: Comparison) -> str:
    """Return what training costs: what the first seed tries, and the others at most."""
    tried = _tokens(comparison.tried())
    judged = _tokens([
        case.child(next(trial for trial in case.trials if trial.form == form), seed)
        for case in comparison.cases for seed in comparison.others for form in (FREE, *FORMS)
    ])  # fmt: skip
    return f"{tried / 1e6:.0f} M tokens choose, about {judged / 1e6:.0f} M judge"


def _tokens(models: Sequence[FinishedModel]) -> float:
    works = [(task, task.work) for task in tasks_of(models)]
    return sum(task.flops / work.initial.rung.size.flops_per_token for task, work in works if task.flops)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare Φ's forms with the best rate without it.")
    parser.add_argument("--studies", nargs="+", default=[str(HERE / "study.yaml"), str(HERE / "gpt2.yaml")])
    parser.add_argument("--output-dir", type=Path, default=Path("runs") / "phi_forms")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY.PATH=VALUE")
    parser.add_argument("--plan", action="store_true", help="say what it costs, and train nothing")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    transformers_logging.set_verbosity_error()
    configs = [with_trials(load_study_config(path, options.set)) for path in options.studies]
    root, corpus = options.output_dir, None
    if not options.plan:
        corpus = prepare_corpus(configs[0].ladder.data, configs[0].ladder.model.context, root / "data")
    plans = [plan_study(config, "" if corpus is None else corpus.fingerprint) for config in configs]
    comparison = Comparison(plans, root, corpus)
    if corpus is None:
        print(cost_line(comparison))
        return
    comparison.carry_out(comparison.tried())
    comparison.write([])
    comparison.carry_out(comparison.judged())
    rows = list(comparison.rows())
    comparison.write(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
