"""What the commands of `hf-progressive` do: from parsed options to an exit code and what `--json` prints."""

import argparse
import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_progressive.cli.grow_options import option_values
from hf_progressive.cli.idle_options import idle_options
from hf_progressive.cli.shown_text import shown_text
from hf_progressive.config import strict_yaml

if TYPE_CHECKING:
    from hf_progressive.publishing import Publication

# Imports of torch and transformers stand inside the commands: `--help` answers at once without them.

EXIT_DONE, EXIT_CHECK_FAILED, EXIT_BAD_INPUT = 0, 1, 2

ASSUMED_GPU, ASSUMED_MFU = "h100", 0.4
"""What `plan` prices with unless told otherwise."""

_SECONDS_BETWEEN_REPORTS = 600.0  # drawing one takes seconds, which a small ladder would pay at every rung

Outcome = tuple[int, dict[str, Any]]
"""Exit code and what `--json` prints."""


def say(text: str) -> None:
    """Write a line for the person who watches."""
    sys.stderr.write(shown_text(text) + "\n")


def show(text: str, options: argparse.Namespace) -> None:
    """Write what a command makes to be read or piped; with `--json` stdout holds that alone."""
    if not options.json:
        sys.stdout.write(shown_text(text) + "\n")


def grow_command(options: argparse.Namespace) -> Outcome:
    """Grow a checkpoint and say how far its logits are from the source's."""
    from hf_progressive.growth import grow_checkpoint
    from hf_progressive.growth.grow import RECORD_NAME
    from hf_progressive.growth.options import GrowthOptions
    from hf_progressive.growth.target import NO_SIZES
    from hf_progressive.storage import read_json

    method_options = option_values(options)
    lines = (_text_of(options.add_tokens, "--add-tokens", "a text file of tokens, one a line") or "").splitlines()
    added = [token for token in lines if token.strip()]
    if options.add_tokens and not added:
        raise ValueError(f"--add-tokens: {options.add_tokens}: there is no token in it; give one a line")
    if not options.set and not added:
        grows = "num_local_experts=8" if options.method == "upcycle" else "num_hidden_layers=24"
        raise ValueError(f"--set: name what grows, such as --set {grows}, or give --add-tokens")
    target = strict_yaml.apply_overrides({}, options.set)
    for name in target.keys() & NO_SIZES.keys():  # what config.json says already may not be what the file holds
        raise ValueError(f"--set {name}: {NO_SIZES[name]}; leave it out")
    GrowthOptions.of(method_options)
    report = grow_checkpoint(
        options.source,
        options.output,
        target,
        method=options.method,
        seed=options.seed,
        max_shard_size=options.max_shard_size,
        optimizer=options.optimizer,
        dtype=options.dtype,
        overwrite=options.overwrite,
        revision=options.revision,
        verify=options.verify,
        add_tokens=added,
        text=_text_of(options.text),
        low_logits=options.low_logits,
        checksums=options.checksums,
        **method_options,
    )
    record = report.to_dict()
    before, after = report.parameters_source, report.parameters_target
    say(f"{options.source} ({before:,} parameters) grew into {options.output} ({after:,}) in {report.seconds:.1f} s")
    for change in report.changes:
        say(f"by design the function changes: {change}")
    for idle in idle_options(options, method_options, read_json(Path(options.output) / RECORD_NAME)["plan"]):
        say(idle)
    check = report.verification
    if check is not None:
        say(check.describe())
    failed = report.preserves_function and check is not None and not check.preserved
    if failed and check is not None:
        say(f"rounding or a fault? {_what_tells(options, check.tolerance)}")
    return (EXIT_CHECK_FAILED if failed else EXIT_DONE), record


def _what_tells(options: argparse.Namespace, tolerance: float) -> str:
    from hf_progressive.growth.verify import rounds_weights

    if rounds_weights(tolerance):  # whatever the arithmetic, these weights are rounded
        return "grow with --dtype float32 too, whose weights are rounded less: that tells"
    return f"`hf-progressive verify {options.source} {options.output} --dtype float64` tells"


def _text_of(path: str | None, option: str = "--text", what: str = "a text file") -> str | None:
    try:
        # Some editors begin a file with a mark of its encoding, which is no part of the first line.
        return None if path is None else Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise ValueError(f"{option}: {path}: {reason}; give {what}") from None


def verify_command(options: argparse.Namespace) -> Outcome:
    """Compare a checkpoint with the one grown from it."""
    from hf_progressive.growth import verify_growth
    from hf_progressive.growth.verify import recorded_changes

    check = verify_growth(
        *(options.source, options.grown),
        dtype=options.dtype,
        sequences=options.sequences,
        text=_text_of(options.text),
    )
    show(check.describe(), options)
    for change in () if check.preserved else recorded_changes(options.grown):
        say(f"by design the function changes: {change}")
    return (EXIT_DONE if check.preserved else EXIT_CHECK_FAILED), check.to_dict()


def plan_command(options: argparse.Namespace) -> Outcome:
    """Show what a ladder would train and cost."""
    from hf_progressive.config import load_ladder_config
    from hf_progressive.data.documents import require_files
    from hf_progressive.ladder.preparation import CORPUS_NAME
    from hf_progressive.planning.cluster import Cluster
    from hf_progressive.planning.evidence import read_evidence, read_studies
    from hf_progressive.planning.ladder_plan import plan_ladder
    from hf_progressive.planning.pricing import LadderPrice
    from hf_progressive.report import price_summary, price_table, write_prices
    from hf_progressive.storage import is_complete

    if options.budget_dollars is not None and options.price is None:
        raise ValueError("--budget-dollars: nothing has a price yet; give --price, of one accelerator for an hour")
    if options.plot and Path(options.plot).suffix.lower() != ".png":
        raise ValueError(f"--plot: {options.plot}: the picture is a PNG; give a name that ends in .png")
    config = load_ladder_config(options.config, options.set)
    mfu = ASSUMED_MFU if options.mfu is None else options.mfu
    cluster = Cluster.of(options.gpu or ASSUMED_GPU, count=options.gpus, mfu=mfu, price=options.price)
    plan = plan_ladder(config, processes=options.gpus)
    folder = Path(options.output_dir or Path("runs") / config.name)
    if (prepared := config.data.prepared) is not None:
        if not is_complete(prepared):  # a corpus of this size may be elsewhere, where the ladder is to train
            say(f"data.prepared: {prepared} holds no prepared corpus here; the ladder needs it where it trains")
    elif not is_complete(folder / CORPUS_NAME):
        require_files(config.data)
    measurement = None
    if options.measure is not None:
        from hf_progressive.planning.measure import measure_ladder

        if options.mfu is not None:
            raise ValueError("mfu: --measure finds it; give one of the two")
        measurement = measure_ladder(plan, processes=options.gpus, seconds=options.measure, folder=folder)
        gpu = cluster.gpu if options.gpu else measurement.device
        cluster = dataclasses.replace(cluster, gpu=gpu, mfu=None)
    price = LadderPrice(
        plan=plan,
        cluster=cluster,
        measurement=measurement,
        evidence=read_evidence(options.recipe_eta) if options.recipe_eta else None,
        studies=read_studies(options.recipe_eta or ()),
        budget_dollars=options.budget_dollars,
        budget_hours=options.budget_hours,
        cores=options.cores,
    )
    record = price.to_dict()
    if options.search:
        from hf_progressive.planning.search import search

        record["search"] = search(plan, price.studies).to_dict()
    shown = f"{price.plan.table()}\n\n{price_table(record)}" if options.full else price_summary(record)
    show(shown, options)
    if options.plot:
        write_prices(record, options.plot)
        say(f"picture: {options.plot}")
    return EXIT_DONE, record


def prepare_command(options: argparse.Namespace) -> Outcome:
    """Make a ladder's corpus ready."""
    from hf_progressive.config import load_ladder_config
    from hf_progressive.ladder.preparation import prepare_ladder

    config = load_ladder_config(options.config, options.set)
    prepared = prepare_ladder(config, options.output_dir or Path("runs") / config.name, num_proc=options.num_proc)
    say(prepared.describe())
    return EXIT_DONE, prepared.to_dict()


def run_ladder_command(options: argparse.Namespace) -> Outcome:
    """Train the ladder that the options name; `examples/run_ladder.py` runs the same."""
    from hf_progressive.config import load_ladder_config
    from hf_progressive.distributed.processes import processes_not_started
    from hf_progressive.ladder.rung_loop import run_ladder
    from hf_progressive.records.ladder import read_run
    from hf_progressive.report import LivePage, results_table, write_report

    config = load_ladder_config(options.config, options.set)
    output_dir = Path(options.output_dir or Path("runs") / config.name)
    if (alone := processes_not_started(os.environ)) is not None:
        say(alone)
    with contextlib.ExitStack() as stack:
        publisher = None
        if config.publish is not None and is_main_process():
            from hf_progressive.publishing import FamilyPublisher

            publisher = stack.enter_context(FamilyPublisher(config.publish))

        reported, page = time.monotonic(), LivePage(output_dir)
        told: set[str] = set()

        def write(what: Callable[[], object]) -> None:
            try:
                what()
            except ValueError as error:  # a damaged record, which the run may be about to write anew
                if str(error) not in told:
                    say(f"the page is not written, and the run goes on: {error}")
                told.add(str(error))

        def on_record(run: Path) -> None:
            nonlocal reported
            if time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                write(page.write_all)
                reported = time.monotonic()
            if publisher is not None:
                publisher(run)

        results = run_ladder(config, output_dir, on_record=on_record, on_progress=lambda _: write(page.write))
        if publisher is not None:
            publisher.catch_up(output_dir)
    if is_main_process():
        write_report(output_dir)
        show(results_table(read_run(output_dir).rungs), options)
        say(f"report: {output_dir / 'report.html'}")
    return EXIT_DONE, {"run": str(output_dir), "rungs": [result.summary() for result in results]}


def study_command(options: argparse.Namespace) -> Outcome:
    """Run a study, or prove its instrument."""
    from hf_progressive.config import load_study_config
    from hf_progressive.study.check import check_instrument
    from hf_progressive.study.run import run_study

    config = load_study_config(options.config, options.set)
    name = f"{config.name}-check" if options.check else config.name
    output_dir = Path(options.output_dir or Path("runs") / name)
    if options.check:
        check = check_instrument(config, output_dir)
        show(check.describe(), options)
        return (EXIT_DONE if check.passed else EXIT_CHECK_FAILED), check.to_dict()
    from hf_progressive.report import write_report

    record = run_study(config, output_dir)
    say(f"report: {write_report(output_dir).html}")
    for failure in record["failed"]:
        say(f"{failure['task']} failed: {failure['reason']}")
    outcome = {"study": str(output_dir), "complete": record["complete"], "headline": record["headline"]}
    return (EXIT_CHECK_FAILED if record["failed"] else EXIT_DONE), outcome


def report_command(options: argparse.Namespace) -> Outcome:
    """Write a report again, or show it while it grows."""
    from hf_progressive.report import write_report, write_section

    if options.serve and options.into:
        raise ValueError("--into: writes a file, and --serve none; give one of the two")
    if options.serve:
        return _serve(options.run_dir, options.port)
    if options.port is not None:
        raise ValueError("--port: is of --serve; give both, or neither")
    if options.into is not None:
        write_section(options.run_dir, options.into)
        say(f"result of {options.run_dir} written into {options.into}")
        return EXIT_DONE, {"document": options.into}
    paths = write_report(options.run_dir)
    say(f"report: {paths.html}")
    return EXIT_DONE, {"html": str(paths.html), "markdown": str(paths.markdown)}


def _serve(folder: str, port: int | None) -> Outcome:
    from hf_progressive.report.server import DEFAULT_PORT, ReportServer, ServedReport

    report = ServedReport(folder)
    report.page()  # a wrong folder is said here, not in the browser
    with ReportServer(report, DEFAULT_PORT if port is None else port) as server:
        try:
            say(f"{folder} is shown at {server.url} to this machine; Ctrl-C ends it")
            server.serve_forever()
        except KeyboardInterrupt:
            say(f"{folder} is no longer shown")
    return EXIT_DONE, {"url": server.url}


def publish_command(options: argparse.Namespace) -> Outcome:
    """Publish a rung or a family."""
    from hf_progressive.publishing import preview_family, publish_family, publish_rung

    described = {"license": options.license, "language": options.language}
    is_family = "{name}" in options.repo_id
    if not is_family and (Path(options.folder) / "ladder.json").is_file():
        raise ValueError(
            f"--repo-id: {options.folder} is a run of several rungs; give ORG/x-{{name}}, or RUN/NAME/final"
        )
    if options.collection and not is_family:
        raise ValueError("--collection: gathers a family; give --repo-id ORG/x-{name}, or leave it out")
    if options.dry_run:
        preview = preview_family if is_family else _preview_rung
        publications = list(preview(options.folder, options.repo_id, **described))
        for publication in publications:
            say(publication.listing())
            show(publication.card, options)
        say("nothing was sent; without --dry-run the same command publishes")
        addresses = [publication.address for publication in publications]
        return EXIT_DONE, {"urls": addresses, "dry_run": True}
    if is_family:
        settings = {**described, "private": options.private, "collection": options.collection}
        addresses = publish_family(options.folder, options.repo_id, **settings)
    else:
        addresses = [publish_rung(options.folder, options.repo_id, private=options.private, **described)]
    show("\n".join(addresses), options)
    return EXIT_DONE, {"urls": addresses, "dry_run": False}


def _preview_rung(folder: str, repo_id: str, **described: Any) -> "list[Publication]":
    from hf_progressive.publishing import prepare_publication

    return [prepare_publication(folder, repo_id, **described)]


def core_command(options: argparse.Namespace) -> Outcome:
    """Evaluate a model on CORE."""
    from hf_progressive.data.tokenizer import read_tokenizer
    from hf_progressive.distributed.processes import current_processes
    from hf_progressive.evaluation.core.bundle import load_bundle
    from hf_progressive.evaluation.core.evaluate import evaluate_core
    from hf_progressive.growth.source import require_config
    from hf_progressive.growth.stock_model import load_whole
    from hf_progressive.hub.fetch import require_place

    require_place(options.model)
    bundle = load_bundle(options.bundle)  # whatever is wrong with it is said before minutes go into a large model
    bundle.select(options.tasks)
    if Path(options.model).is_dir():
        require_config(Path(options.model))
    state = current_processes()
    try:
        tokenizer = read_tokenizer(options.model)
        model = load_whole(options.model, options.dtype)
    except OSError as error:
        raise OSError(f"{options.model}: {str(error).removeprefix(f'{options.model}: ')}") from error
    result = evaluate_core(
        model.to(state.device),
        tokenizer,
        bundle,
        tasks=options.tasks,
        max_per_task=options.max_per_task,
        batch_size=options.batch_size,
        resume_file=options.resume,
    )
    if state.is_main_process:
        show(result.table(), options)
    return EXIT_DONE, result.to_dict()


def is_main_process() -> bool:
    """Tell whether this is the launch's first process, the one that speaks."""
    return os.environ.get("RANK", "0") == "0"
