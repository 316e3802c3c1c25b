"""The command line, `hf-progressive`: argparse in front of the package's functions.

Progress and logs go to stderr. With `--json` the last line on stdout is one JSON object. Exit codes: 0 done, 1 a check
failed or training broke off, 2 bad input (one line that says what, where, and what would be right), 143 SIGTERM came.
"""

import argparse
import difflib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from hf_progressive import __version__
from hf_progressive.cli import commands, numbers
from hf_progressive.cli.commands import (
    ASSUMED_GPU,
    ASSUMED_MFU,
    EXIT_BAD_INPUT,
    EXIT_CHECK_FAILED,
    EXIT_DONE,
    Outcome,
    is_main_process,
    run_ladder_command,
    say,
)
from hf_progressive.cli.doctor import doctor_command
from hf_progressive.cli.faults import FaultNoted, memory_shortage
from hf_progressive.cli.grow_options import METHODS_HELP, add_option_flags
from hf_progressive.cli.shown_text import ShownFormatter, show_traceback, take_every_character
from hf_progressive.config.credentials import without_tokens
from hf_progressive.config.ranges import Range
from hf_progressive.distributed.termination import ended_by_sigterm
from hf_progressive.storage.full_disk import FullDiskNamed

_Add = Callable[..., Any]  # a parser's `add_argument`
_Run = Callable[[argparse.Namespace], Outcome]

EXIT_INTERRUPTED = 130  # as a shell reports a program that ended by SIGINT

_MEASURED_SECONDS = 60.0  # of each rung, by `plan --measure`

_SECONDS_FOR_THE_FIRST = 3.0

_WRITES_AT_ONCE = ("grow", "verify", "plan", "doctor")  # or nothing: there is no half to go on from

_LONGEST_LINE = 4000  # characters of an error: what is wrong with every rung, but not a file

_CHARACTERS_AROUND = 30  # of one that cannot be written: a name and not a record

_AFTER_DIVERGENCE = "; look at the data, or begin in another --output-dir with --set training.learning_rate=LOWER"
_AFTER_MEMORY = "; of a ladder, `hf-progressive plan CONFIG` says which training.micro_batch_size fits"

_FIRST_STEPS = """\
hf-progressive grows language models: every model of a family inherits from the one before it.

  hf-progressive doctor                                  what works on this machine
  hf-progressive ladder ladder_tiny                      train three models, each from the last
  hf-progressive grow SRC OUT --set num_hidden_layers=32 make a model larger
  hf-progressive plan ladder_d10_d18 --price 3           what a family costs; nothing is trained
  hf-progressive publish RUN/NAME/final --repo-id ORG/NAME --dry-run

hf-progressive --help lists every command, hf-progressive COMMAND --help its options.
"""


class _Parser(argparse.ArgumentParser):
    """A parser that says of an unknown option which one is near, below the usage of its own command."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and refuse what is left over."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = [flag for word in unknown for flag in difflib.get_close_matches(word.partition("=")[0], flags, n=1)]
            fields = [word for word in unknown if "=" in word and not word.startswith("-")]
            if fields and "--set" in flags:
                near = [f"--set {' '.join(fields)}"]
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return options, unknown


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; its results carry `run`, the function of the chosen command."""
    parser = _Parser(
        prog="hf-progressive",
        description="Grow language models: every model of a family inherits from the one before it.",
        epilog="Exit codes: 0 done; 1 a check failed, or training broke off; 2 bad input; 130 Ctrl-C; 143 SIGTERM.",
    )
    parser.add_argument("--version", action="version", version=f"hf-progressive {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: _Run, text: str, arguments: str, *examples: str, more: str = "") -> _Parser:
        shown = "\n".join(["examples:", *(f"  hf-progressive {example}" for example in examples)])
        sub = subparsers.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            usage=f"hf-progressive {name} {arguments}[OPTIONS]",
            epilog=f"{more}\n{shown}" if more else shown,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run, command=name)
        sub.add_argument("--json", action="store_true", help="print one JSON object as the last line on stdout")
        return sub

    def configured(name: str, run: _Run, text: str, output_dir: str, *examples: str) -> _Add:
        add = command(name, run, text, "CONFIG ", *examples).add_argument
        overrides = "overrides of CONFIG; of two of one key the last counts"
        add("config", metavar="CONFIG", help="a YAML file, or the name of one that ships with the package")
        add("--set", nargs="+", action="extend", default=[], metavar="KEY.PATH=VALUE", help=overrides)
        add("--output-dir", metavar="DIR", help=output_dir)
        return add

    its_folder = "the run folder; default: runs/ and the name in CONFIG"

    text = "show versions, devices and engines, and what will and will not work"
    command("doctor", doctor_command, text, "", "doctor", "doctor --json")

    on_text = "a text that the source knows: measures on it what its tokens' predictions lose to new tokens"
    text = "grow a checkpoint into a larger one that computes the same function"
    grow = command(
        *("grow", commands.grow_command, text, "SRC OUT --set FIELD=VALUE ... "),
        *("grow gpt2 larger --set n_layer=16 n_embd=1024 n_head=16", "grow SRC OUT --set num_hidden_layers=48"),
        "grow SRC OUT --method upcycle --set num_local_experts=8 num_experts_per_tok=2",
        more=METHODS_HELP,
    )
    add = grow.add_argument
    add("source", metavar="SRC", help="a checkpoint's folder or Hub name")
    add("output", metavar="OUT", help="the folder to create")
    add(
        "--set",
        nargs="+",
        default=[],
        action="extend",
        metavar="FIELD=VALUE",
        help="fields of the model's configuration, new values",
    )
    add("--method", default="exact", help="growth method, by its name in the list below (default: exact)")
    text = "a text file of tokens, one a line, to add to the tokenizer; the vocabulary grows to hold them"
    add("--add-tokens", metavar="FILE", help=text)
    add("--text", metavar="FILE", help=on_text)
    text = "let new tokens' logits start so much lower in the mean over --text, of which old predictions lose less"
    add("--low-logits", type=numbers.positive, default=0.0, metavar="NAT", help=text)
    add("--seed", type=numbers.seed, default=0, help="seed of new random entries (default: 0)")
    add("--max-shard-size", default="5GB", metavar="SIZE", help="largest weight file (default: 5GB)")
    add("--optimizer", metavar="FILE", help="AdamW's (or Muon's) state of a Trainer checkpoint to grow along")
    add("--dtype", help="dtype of the output's weights; default: the source's")
    add("--revision", help="branch, tag or commit of a Hub source")
    add(
        "--overwrite",
        action="store_true",
        help="replace an existing output, with all in it, once the new one is complete",
    )
    text = "do not compare the logits of both models, which loads them one after the other"
    add("--no-verify", dest="verify", action="store_false", help=text)
    text = "compute no SHA-256 of what is read and written; twice as fast where a processor lacks instructions for it"
    add("--no-checksums", dest="checksums", action="store_false", help=text)
    of_method = grow.add_argument_group("options of the method").add_argument
    text = "some of those below in one list, such as depth_method=stack noise=0.1"
    of_method("--option", nargs="+", default=[], action="extend", metavar="NAME=VALUE", help=text)
    add_option_flags(of_method)

    text = "compare the logits of a checkpoint and of the one grown from it"
    add = command(
        "verify", commands.verify_command, text, "SRC GROWN ", "verify SRC GROWN --dtype float64"
    ).add_argument
    add("source", metavar="SRC", help="the parent's folder or Hub name")
    add("grown", metavar="GROWN", help="the child's folder or Hub name")
    add("--dtype", default="float32", choices=("float32", "float64"), help="precision of the comparison")
    a_few = numbers.number(Annotated[int, Range(1, 100_000)])
    add("--sequences", type=a_few, default=4, help="random sequences to compare on (default: 4)")
    add("--text", metavar="FILE", help=on_text)

    text = "show what a ladder would train, and what each rung costs, without training"
    where = "the run folder, in whose file system --measure times saving"
    examples = ("plan ladder_d10_d18 --gpus 8 --gpu h100 --price 3", "plan mine.yaml --measure")
    add = configured("plan", commands.plan_command, text, where, *examples)
    add("--gpus", type=int, default=1, metavar="N", help="number of accelerators (default: 1)")
    add("--gpu", metavar="NAME", help=f"their kind (default: {ASSUMED_GPU}; with --measure, what is at hand)")
    add("--mfu", type=float, help=f"share of their peak that training reaches (default: {ASSUMED_MFU:g})")
    text = f"time real steps on this machine, and price by them: SECONDS a rung (default: {_MEASURED_SECONDS:g})"
    add("--measure", nargs="?", type=float, const=_MEASURED_SECONDS, metavar="SECONDS", help=text)
    add("--price", type=float, metavar="DOLLARS", help="price of one accelerator for an hour")
    text = "measured transfer efficiency: ETA, or ETA LOW HIGH, or study.json files"
    add("--recipe-eta", nargs="+", metavar="ETA", help=text)
    text = "propose where a trunk of the rungs would grow at the least cost of the last, by the trunks of --recipe-eta"
    add("--search", action="store_true", help=text)
    add("--budget-dollars", type=numbers.positive, metavar="DOLLARS", help="what the run may cost")
    add("--budget-hours", type=numbers.positive, metavar="HOURS", help="what the run may take")
    add("--cores", type=int, metavar="N", help="cores of the machine that trains, to tokenize a stream")
    add("--full", action="store_true", help="print all there is to say, in wide tables, and not what fits a screen")
    add("--plot", metavar="FILE", help="write the prices as a picture (PNG)")

    text = "read, tokenize and pack a ladder's corpus, in parts, before the ladder trains on it"
    add = configured("prepare", commands.prepare_command, text, its_folder, "prepare mine.yaml --num-proc 32")
    text = "processes that tokenize; default: the threads of one, on all cores"
    add("--num-proc", type=int, metavar="N", help=text)

    text = "train a ladder: grow, verify, train, measure and report every rung"
    configured(
        *("ladder", run_ladder_command, text, its_folder, "ladder ladder_tiny"),
        "ladder mine.yaml --set training.learning_rate=1e-3 --output-dir runs/other",
    )

    text = "measure what inheritance saves: recipes × seeds × rungs, several budgets each"
    where = "the study's folder; default: runs/ and the name in CONFIG, with --check and -check behind it"
    add = configured("study", commands.study_command, text, where, "study study_tiny --check", "study my_study.yaml")
    add("--check", action="store_true", help="prove the instrument on cases whose result is known")

    text = "write the report of a run or a study again from its records"
    examples = ("report runs/mine", "report runs/mine --serve")
    add = command("report", commands.report_command, text, "RUN_DIR ", *examples).add_argument
    add("run_dir", metavar="RUN_DIR", help="the folder of a run or of a study")
    text = "put a study's result between the marks of this file, and write no page"
    add("--into", metavar="FILE", help=text)
    text = "write nothing, and show the page to a browser on this machine, as the records are then; Ctrl-C ends it"
    add("--serve", action="store_true", help=text)
    add("--port", type=int, metavar="PORT", help="where --serve shows it; 0 takes any that is free (default: 8787)")

    text = "publish a rung, or every finished rung of a run, on the Hub"
    add = command(
        *("publish", commands.publish_command, text, "FOLDER --repo-id ORG/NAME "),
        "publish RUN/NAME/final --repo-id ORG/NAME --dry-run",
        "publish RUN --repo-id 'ORG/family-{name}' --license apache-2.0 --collection TITLE",
    ).add_argument
    add("folder", metavar="FOLDER", help="a rung's final/ folder, or the run folder of a family")
    add("--repo-id", required=True, metavar="ORG/NAME", help="for a family, with {name}: ORG/x-{name}")
    add("--private", action="store_true", help="keep the repositories from the public")
    add("--license", help="the weights' licence, by its identifier on the Hub, such as apache-2.0")
    add("--language", nargs="+", default=[], help="languages of the data: ISO 639 codes, or code")
    add("--collection", metavar="TITLE", help="gather a family in a collection of this title")
    add("--dry-run", action="store_true", help="send nothing; list the files, and print the card")

    text = "evaluate a causal language model on DCLM's CORE"
    example = "core runs/mine/large/final --bundle eval_bundle --max-per-task 500"
    add = command("core", commands.core_command, text, "MODEL --bundle DIR ", example).add_argument
    add("model", metavar="MODEL", help="a checkpoint's folder or Hub name")
    add("--bundle", required=True, metavar="DIR", help="the folder of a CORE bundle")
    add("--tasks", nargs="+", metavar="LABEL", help="tasks to evaluate; default: all that have data")
    add("--max-per-task", type=numbers.whole, metavar="N", help="examples per task at the most; default: all")
    text = "sequences per forward pass at the most; default: by memory"
    add("--batch-size", type=numbers.whole, metavar="N", help=text)
    text = "precision of the weights (default: float32)"
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "float64"), help=text)
    add("--resume", metavar="FILE", help="JSON file of finished tasks, read if it exists; of one run at a time")
    return parser


def execute(run: Callable[[argparse.Namespace], Outcome], options: argparse.Namespace) -> int:
    """Run a command and turn its outcome, or its error, into an exit code and at most one line.

    Raises:
        SystemExit: SIGTERM came; the code is 143.
    """
    take_every_character()
    _quieten()
    with ended_by_sigterm():
        try:
            with FullDiskNamed(Path.cwd()), FaultNoted():
                code, record = run(options)
        except (ValueError, OSError) as error:
            return _fail(error, EXIT_BAD_INPUT)
        except FloatingPointError as error:
            return _fail(error, EXIT_CHECK_FAILED, _AFTER_DIVERGENCE)
        except (RuntimeError, MemoryError) as error:
            if not (shortage := memory_shortage(error)):
                raise
            remedy = "" if isinstance(error, MemoryError) else _AFTER_MEMORY
            return _fail(type(error)(shortage), EXIT_CHECK_FAILED, remedy)
        except KeyboardInterrupt:
            if is_main_process():
                say(f"hf-progressive: stopped; {_after_a_stop(options)}")
            return EXIT_INTERRUPTED
        except SystemExit:  # SIGTERM
            if is_main_process():
                say(f"hf-progressive: told to stop; {_after_a_stop(options)}")
            _leave_processes()
            raise
        _leave_processes()
    if options.json and is_main_process():
        sys.stdout.write(without_tokens(json.dumps(record)) + "\n")
    return code


def _after_a_stop(options: argparse.Namespace) -> str:
    if getattr(options, "command", None) in _WRITES_AT_ONCE:
        return "nothing was written"
    return "the same command goes on from what was saved"


def _leave_processes() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from hf_progressive.distributed.processes import leave_processes

        leave_processes()


def _quieten() -> None:
    # Our own progress and messages are what a person watches; libraries speak up when something is wrong.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ShownFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.captureWarnings(True)  # which are shown like messages
    sys.excepthook = show_traceback
    logging.getLogger("hf_progressive").setLevel(logging.INFO)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # DeepSpeed's warnings would go to stdout, among what is there to be piped.
    logging.getLogger("DeepSpeed").addFilter(_is_error)
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # our own message names the file
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars would fill a log; lines say the same


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _fail(error: Exception, code: int, remedy: str = "") -> int:
    if os.environ.get("HF_PROGRESSIVE_TRACEBACK"):
        raise error
    line = _in_one_line(error) + remedy
    if is_main_process():
        say(f"hf-progressive: error: {line}")
    elif not _is_the_firsts(error):
        # What all processes meet, the first says, and with it the launcher ends the others.
        time.sleep(_SECONDS_FOR_THE_FIRST)
        say(f"hf-progressive: error in process {os.environ['RANK']}: {line}")
    return code


def _is_the_firsts(error: Exception) -> bool:
    from hf_progressive.distributed.processes import MainProcessFailedError

    return isinstance(error, MainProcessFailedError)


def _in_one_line(error: Exception) -> str:
    # A data loader wraps what its worker raised into a text that ends with the traceback's last line.
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    if isinstance(error, UnicodeEncodeError):
        near = error.object[max(error.start - _CHARACTERS_AROUND, 0) : error.end + _CHARACTERS_AROUND]
        remedy = "" if error.encoding == "utf-8" else ", or set LC_ALL=C.UTF-8"
        text = f"{near!r}: a name within cannot be written in {error.encoding}; rename what has it{remedy}"
    if text.startswith("Caught ") and " in DataLoader worker process " in text.partition("\n")[0]:
        text = text.splitlines()[-1].partition(": ")[2]
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]} ... ({len(line):,} characters)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; without a command it says what one does first."""
    take_every_character()
    given = sys.argv[1:] if arguments is None else arguments
    if not given:
        sys.stdout.write(_FIRST_STEPS)
        return EXIT_DONE
    options = build_parser().parse_args(given)
    return execute(options.run, options)
