"""The command line, `hf-progressive`: argparse in front of the package's functions.

Progress and logs go to stderr. With `--json` the last line on stdout is one JSON object. Exit codes: 0 done, 1 a check
failed or training broke off, 2 bad input (one line that says what, where, and what would be right), 143 SIGTERM came.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_progressive import __version__, strict_yaml
from hf_progressive.config.credentials import without_tokens
from hf_progressive.full_disk import FullDiskNamed
from hf_progressive.termination import ended_by_sigterm

# Imports of torch and transformers stand inside the commands: `--help` answers at once without them.

EXIT_DONE, EXIT_CHECK_FAILED, EXIT_BAD_INPUT = 0, 1, 2

_ASSUMED_GPU, _ASSUMED_MFU, _MEASURED_SECONDS = "h100", 0.4, 60.0  # of `plan`

_SECONDS_BETWEEN_REPORTS = 600.0  # drawing one takes seconds, which a small ladder would pay at every rung

Outcome = tuple[int, dict[str, Any]]
"""Exit code and what `--json` prints."""


def _parse_fields(items: Sequence[str]) -> dict[str, Any]:
    mapping: dict[str, Any] = strict_yaml.apply_overrides({}, items)
    return mapping


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _grow(options: argparse.Namespace) -> Outcome:
    from hf_progressive.growth import grow_checkpoint

    report = grow_checkpoint(
        options.source,
        options.output,
        _parse_fields(options.set),
        method=options.method,
        seed=options.seed,
        max_shard_size=options.max_shard_size,
        optimizer=options.optimizer,
        dtype=options.dtype,
        overwrite=options.overwrite,
        revision=options.revision,
    )
    record = report.to_dict()
    before, after = report.parameters_source, report.parameters_target
    _say(f"{options.source} ({before:,} parameters) grew into {options.output} ({after:,}) in {report.seconds:.1f} s")
    check = report.verification
    if check is not None:
        _say(check.describe())
    failed = report.preserves_function and check is not None and not check.preserved
    return (EXIT_CHECK_FAILED if failed else EXIT_DONE), record


def _verify(options: argparse.Namespace) -> Outcome:
    from hf_progressive.growth import verify_growth

    check = verify_growth(options.source, options.grown, dtype=options.dtype, sequences=options.sequences)
    _say(check.describe())
    return (EXIT_DONE if check.preserved else EXIT_CHECK_FAILED), check.to_dict()


def _plan(options: argparse.Namespace) -> Outcome:
    from hf_progressive.config import load_ladder_config
    from hf_progressive.ladder_plan import plan_ladder
    from hf_progressive.pricing import Cluster, LadderPrice, read_evidence
    from hf_progressive.report import price_table, write_prices

    config = load_ladder_config(options.config, options.set)
    mfu = _ASSUMED_MFU if options.mfu is None else options.mfu
    cluster = Cluster.of(options.gpu or _ASSUMED_GPU, count=options.gpus, mfu=mfu, price=options.price)
    plan = plan_ladder(config, processes=options.gpus)
    measurement = None
    if options.measure is not None:
        from hf_progressive.measure import measure_ladder

        if options.mfu is not None:
            raise ValueError("mfu: --measure finds it; give one of the two")
        folder = options.output_dir or Path("runs") / config.name
        measurement = measure_ladder(plan, processes=options.gpus, seconds=options.measure, folder=folder)
        gpu = cluster.gpu if options.gpu else measurement.device
        cluster = dataclasses.replace(cluster, gpu=gpu, mfu=None)
    price = LadderPrice(
        plan=plan,
        cluster=cluster,
        measurement=measurement,
        evidence=read_evidence(options.recipe_eta) if options.recipe_eta else None,
        budget_dollars=options.budget_dollars,
        budget_hours=options.budget_hours,
        cores=options.cores,
    )
    record = price.to_dict()
    if not options.json:
        sys.stdout.write(f"{price.plan.table()}\n\n{price_table(record)}\n")
    if options.plot:
        write_prices(record, options.plot)
        _say(f"picture: {options.plot}")
    return EXIT_DONE, record


def _prepare(options: argparse.Namespace) -> Outcome:
    from hf_progressive.config import load_ladder_config
    from hf_progressive.preparation import prepare_ladder

    config = load_ladder_config(options.config, options.set)
    prepared = prepare_ladder(config, options.output_dir or Path("runs") / config.name, num_proc=options.num_proc)
    _say(prepared.describe())
    return EXIT_DONE, prepared.to_dict()


def run_ladder_command(options: argparse.Namespace) -> Outcome:
    """Train the ladder that the options name; `examples/run_ladder.py` runs the same.

    Args:
        options: `config`, `set` and `output_dir`.

    Returns:
        The exit code, the run folder and a summary of each rung.
    """
    from hf_progressive.config import load_ladder_config
    from hf_progressive.ladder import run_ladder
    from hf_progressive.report import read_run, results_table, write_report

    config = load_ladder_config(options.config, options.set)
    output_dir = Path(options.output_dir or Path("runs") / config.name)
    with contextlib.ExitStack() as stack:
        publisher = None
        if config.publish is not None and _is_main_process():
            from hf_progressive.hub import FamilyPublisher

            options_by_name = dataclasses.asdict(config.publish)
            publisher = stack.enter_context(FamilyPublisher(options_by_name.pop("repo_id"), **options_by_name))

        reported = time.monotonic()

        def on_record(run: Path) -> None:
            nonlocal reported
            if time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                write_report(run)
                reported = time.monotonic()
            if publisher is not None:
                publisher(run)

        results = run_ladder(config, output_dir, on_record=on_record)
    if _is_main_process():
        write_report(output_dir)
        if not options.json:
            sys.stdout.write(results_table(read_run(output_dir).rungs) + "\n")
        _say(f"report: {output_dir / 'report.html'}")
    return EXIT_DONE, {"run": str(output_dir), "rungs": [result.summary() for result in results]}


def _study(options: argparse.Namespace) -> Outcome:
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # a study's bars would fill a log; its lines say the same
    from hf_progressive.config import load_study_config
    from hf_progressive.study.check import check_instrument
    from hf_progressive.study.run import run_study

    config = load_study_config(options.config, options.set)
    name = f"{config.name}-check" if options.check else config.name
    output_dir = Path(options.output_dir or Path("runs") / name)
    if options.check:
        check = check_instrument(config, output_dir)
        _say(check.describe())
        return (EXIT_DONE if check.passed else EXIT_CHECK_FAILED), check.to_dict()
    from hf_progressive.report import write_study_report

    record = run_study(config, output_dir)
    _say(f"report: {write_study_report(output_dir).html}")
    for failure in record["failed"]:
        _say(f"{failure['task']} failed: {failure['reason']}")
    outcome = {"study": str(output_dir), "complete": record["complete"], "headline": record["headline"]}
    return (EXIT_CHECK_FAILED if record["failed"] else EXIT_DONE), outcome


def _report(options: argparse.Namespace) -> Outcome:
    from hf_progressive.report import write_report, write_section, write_study_report

    is_study = (Path(options.run_dir) / "study.json").is_file()
    if options.into:
        write_section(options.run_dir, options.into)
        _say(f"result of {options.run_dir} written into {options.into}")
        return EXIT_DONE, {"document": options.into}
    paths = write_study_report(options.run_dir) if is_study else write_report(options.run_dir)
    _say(f"report: {paths.html}")
    return EXIT_DONE, {"html": str(paths.html), "markdown": str(paths.markdown)}


def _publish(options: argparse.Namespace) -> Outcome:
    from hf_progressive.hub import publish_family, publish_rung

    settings = {name: getattr(options, name) for name in ("private", "license", "language", "dry_run")}
    if "{name}" in options.repo_id:
        addresses = publish_family(options.folder, options.repo_id, collection=options.collection, **settings)
    else:
        addresses = [publish_rung(options.folder, options.repo_id, **settings)]
    for address in addresses:
        _say(address)
    return EXIT_DONE, {"urls": addresses, "dry_run": options.dry_run}


def _core(options: argparse.Namespace) -> Outcome:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_progressive.evaluation.core import evaluate_core
    from hf_progressive.processes import current_processes

    state = current_processes()
    result = evaluate_core(
        AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype).to(state.device),
        AutoTokenizer.from_pretrained(options.model),
        options.bundle,
        tasks=options.tasks,
        max_per_task=options.max_per_task,
        batch_size=options.batch_size,
        resume_file=options.resume,
    )
    if not options.json and state.is_main_process:
        sys.stdout.write(result.table() + "\n")
    return EXIT_DONE, result.to_dict()


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line on stdout")


def _add_ladder_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", metavar="DIR", help="the run folder; default: runs/ and the name in CONFIG")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY.PATH=VALUE",
        help="overrides of the configuration",
    )
    _add_json(parser)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line.

    Returns:
        A parser whose results carry `run`, the function of the chosen command.
    """
    parser = argparse.ArgumentParser(
        prog="hf-progressive",
        description="Grow language models: every model of a family inherits from the one before it.",
    )
    parser.add_argument("--version", action="version", version=f"hf-progressive {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], Outcome], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    grow = command("grow", _grow, "grow a checkpoint into a wider or deeper one that computes the same function")
    grow.add_argument("source", metavar="SRC", help="a checkpoint's folder or Hub name")
    grow.add_argument("output", metavar="OUT", help="the folder to create")
    grow.add_argument("--set", nargs="+", required=True, action="extend", metavar="FIELD=VALUE", help="target fields")
    grow.add_argument("--method", default="exact", help="growth method (default: exact)")
    grow.add_argument("--seed", type=int, default=0, help="seed of new random entries (default: 0)")
    grow.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest weight file (default: 5GB)")
    grow.add_argument("--optimizer", metavar="FILE", help="AdamW state of a Trainer checkpoint to grow along")
    grow.add_argument("--dtype", help="dtype of the output's weights; default: the source's")
    grow.add_argument("--revision", help="branch, tag or commit of a Hub source")
    grow.add_argument(
        "--overwrite", action="store_true", help="replace an existing output once the new one is complete"
    )
    _add_json(grow)

    verify = command("verify", _verify, "compare the logits of a checkpoint and of the one grown from it")
    verify.add_argument("source", metavar="SRC", help="the parent's folder or Hub name")
    verify.add_argument("grown", metavar="GROWN", help="the child's folder or Hub name")
    verify.add_argument(
        "--dtype", default="float32", choices=("float32", "float64"), help="precision of the comparison"
    )
    verify.add_argument("--sequences", type=int, default=4, help="random sequences to compare on (default: 4)")
    _add_json(verify)

    plan = command("plan", _plan, "show what a ladder would train, and what each rung costs, without training")
    plan.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of one that ships with the package")
    plan.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY.PATH=VALUE", help="overrides")
    plan.add_argument("--gpus", type=int, default=1, metavar="N", help="number of accelerators (default: 1)")
    plan.add_argument(
        "--gpu", metavar="NAME", help=f"their kind (default: {_ASSUMED_GPU}; with --measure, what is at hand)"
    )
    plan.add_argument(
        "--mfu", type=float, help=f"share of their peak that training reaches (default: {_ASSUMED_MFU:g})"
    )
    plan.add_argument(
        "--measure",
        nargs="?",
        type=float,
        const=_MEASURED_SECONDS,
        metavar="SECONDS",
        help=f"time real steps on this machine, and price by them: SECONDS a rung (default: {_MEASURED_SECONDS:g})",
    )
    plan.add_argument(
        "--output-dir", metavar="DIR", help="the run folder, in whose file system --measure times saving"
    )
    plan.add_argument("--price", type=float, metavar="DOLLARS", help="price of one accelerator for an hour")
    plan.add_argument(
        "--recipe-eta",
        nargs="+",
        metavar="ETA",
        help="measured transfer efficiency: ETA, or ETA LOW HIGH, or the path of a study.json",
    )
    plan.add_argument("--budget-dollars", type=float, metavar="DOLLARS", help="what the run may cost")
    plan.add_argument("--budget-hours", type=float, metavar="HOURS", help="what the run may take")
    plan.add_argument("--cores", type=int, metavar="N", help="cores of the machine that trains, to tokenize a stream")
    plan.add_argument("--plot", metavar="FILE", help="write the prices as a picture (PNG)")
    _add_json(plan)

    prepare = command(
        "prepare", _prepare, "read, tokenize and pack a ladder's corpus, in parts, before the ladder trains on it"
    )
    prepare.add_argument(
        "config", metavar="CONFIG", help="a YAML file, or the name of one that ships with the package"
    )
    prepare.add_argument(
        "--num-proc", type=int, metavar="N", help="processes that tokenize; default: the threads of one, on all cores"
    )
    _add_ladder_options(prepare)

    ladder = command(
        "ladder", run_ladder_command, "train a ladder: grow, verify, train, measure and report every rung"
    )
    ladder.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of one that ships with the package")
    _add_ladder_options(ladder)

    study = command("study", _study, "measure what inheritance saves: arms × seeds × rungs, several budgets each")
    study.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of one that ships with the package")
    study.add_argument("--check", action="store_true", help="prove the instrument on cases whose result is known")
    _add_ladder_options(study)

    report = command("report", _report, "write the report of a run or a study again from its records")
    report.add_argument("run_dir", metavar="RUN_DIR", help="the folder of a run or of a study")
    report.add_argument(
        "--into",
        metavar="FILE",
        help="put a study's result between the marks of this file, and write no page",
    )
    _add_json(report)

    publish = command("publish", _publish, "publish a rung, or every finished rung of a run, on the Hub")
    publish.add_argument("folder", metavar="RUNG_DIR", help="a rung's final/ folder, or the run folder of a family")
    publish.add_argument(
        "--repo-id", required=True, metavar="ORG/NAME", help="for a family, with {name}: ORG/x-{name}"
    )
    publish.add_argument("--private", action="store_true", help="keep the repositories from the public")
    publish.add_argument("--license", help="the weights' licence, by its identifier on the Hub")
    publish.add_argument("--language", nargs="+", default=[], help="languages of the data: ISO 639 codes, or code")
    publish.add_argument("--collection", metavar="TITLE", help="gather a family in a collection of this title")
    publish.add_argument("--dry-run", action="store_true", help="send nothing; list the files and show the card")
    _add_json(publish)

    core = command("core", _core, "evaluate a causal language model on DCLM's CORE")
    core.add_argument("model", metavar="MODEL", help="a checkpoint's folder or Hub name")
    core.add_argument("--bundle", required=True, metavar="DIR", help="the folder of a CORE bundle")
    core.add_argument("--tasks", nargs="+", metavar="LABEL", help="tasks to evaluate; default: all that have data")
    core.add_argument("--max-per-task", type=int, metavar="N", help="examples per task at the most; default: all")
    core.add_argument(
        "--batch-size", type=int, metavar="N", help="sequences per forward pass at the most; default: by memory"
    )
    core.add_argument("--dtype", default="float32", help="precision of the weights (default: float32)")
    core.add_argument("--resume", metavar="FILE", help="JSON file of finished tasks, read if it exists")
    _add_json(core)
    return parser


def execute(run: Callable[[argparse.Namespace], Outcome], options: argparse.Namespace) -> int:
    """Run a command and turn its outcome, or its error, into an exit code and at most one line.

    Args:
        run: The command's function.
        options: Its parsed options.

    Returns:
        The exit code.

    Raises:
        SystemExit: SIGTERM came; the code is 143.
    """
    _quieten()
    with ended_by_sigterm():
        try:
            with FullDiskNamed(Path.cwd()):
                code, record = run(options)
        except (ValueError, OSError) as error:
            return _fail(error, EXIT_BAD_INPUT)
        except FloatingPointError as error:
            return _fail(error, EXIT_CHECK_FAILED)
        except SystemExit:  # SIGTERM
            _leave_processes()
            raise
        _leave_processes()
    if options.json and _is_main_process():
        sys.stdout.write(json.dumps(record) + "\n")
    return code


def _leave_processes() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from hf_progressive.processes import leave_processes

        leave_processes()


def _quieten() -> None:
    # Our own progress and messages are what a person watches; libraries speak up when something is wrong.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("hf_progressive").setLevel(logging.INFO)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # our own message names the file
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _fail(error: Exception, code: int) -> int:
    if os.environ.get("HF_PROGRESSIVE_TRACEBACK"):
        raise error
    if _is_main_process():
        _say(f"hf-progressive: error: {without_tokens(_in_one_line(error))}")
    return code


def _in_one_line(error: Exception) -> str:
    # A data loader wraps what its worker raised into a text that ends with the traceback's last line.
    text = str(error).strip()
    if text.startswith("Caught ") and " in DataLoader worker process " in text.partition("\n")[0]:
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after the program's name; None takes them from `sys.argv`.

    Returns:
        The exit code.
    """
    options = build_parser().parse_args(arguments)
    return execute(options.run, options)
