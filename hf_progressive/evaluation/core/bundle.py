"""A CORE bundle on the disk: which tasks there are, their baselines and their examples.

CORE is the aggregate of Li et al., "DataComp-LM: In search of the next generation of training sets for language
models" (https://arxiv.org/abs/2406.11794): 22 in-context learning tasks of three kinds. A bundle is a folder with

    core.yaml             `icl_tasks`: label, dataset_uri, num_fewshot, icl_task_type, continuation_delimiter
    eval_meta_data.csv    columns "Eval Task" and "Random baseline" (per cent)
    eval_data/<dataset_uri>    one JSON object a line

A task whose data file is missing is *absent*: it is listed, and a score without it is not called CORE. Everything
else that is missing or malformed is an error that names the file and the line.
"""

import csv
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from hf_progressive.config.ranges import class_of
from hf_progressive.config.strict_yaml import parse_yaml
from hf_progressive.storage import parse_json, require_inside_name, sha256_file

Kind = Literal["multiple_choice", "schema", "language_modeling"]
"""The kinds of task: options that continue one context, contexts that share one continuation, or a text to produce."""

CORE_TASKS = (
    "hellaswag_zeroshot",
    "jeopardy",
    "bigbench_qa_wikidata",
    "arc_easy",
    "arc_challenge",
    "copa",
    "commonsense_qa",
    "piqa",
    "openbook_qa",
    "lambada_openai",
    "hellaswag",
    "winograd",
    "winogrande",
    "bigbench_dyck_languages",
    "agi_eval_lsat_ar",
    "bigbench_cs_algorithms",
    "bigbench_operators",
    "bigbench_repeat_copy_logic",
    "squad",
    "coqa",
    "boolq",
    "bigbench_language_identification",
)
"""The 22 tasks of CORE, by label."""

DEFAULT_DELIMITER = " "
"""What stands between a context and its continuation where core.yaml names nothing else."""


@dataclass(frozen=True, slots=True)
class Example:
    """One item of a task, in the form all three kinds share.

    Its options are pairs (context, continuation). Multiple choice pairs one context with every choice, schema every
    context with one continuation; language modelling has a single pair.
    """

    options: tuple[tuple[str, str], ...]
    gold: int
    """Which option is right; 0 in language modelling."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of the bundle, with its examples in file order."""

    label: str
    """Name of the task, as in core.yaml."""
    kind: Kind
    """How an example is asked and judged."""
    shots: int
    """Solved examples shown before the question."""
    delimiter: str
    """Text between context and continuation."""
    baseline: float
    """Accuracy of a random guess, in [0, 1)."""
    sha256: str
    """Digest of the data file."""
    examples: tuple[Example, ...] = field(repr=False)
    """The items, in file order."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """The tasks of a bundle, in the order of core.yaml."""

    path: Path
    """Folder read."""
    tasks: tuple[Task, ...]
    """The tasks whose data are present."""
    absent: tuple[str, ...]
    """Labels of the tasks that core.yaml lists and whose data file is missing."""

    def select(self, labels: Iterable[str] | None) -> tuple[Task, ...]:
        """Return the tasks of some labels, or all of them for None, in the bundle's order."""
        if labels is None:
            return self.tasks
        if isinstance(labels, str):
            raise ValueError(f"tasks is the text {labels!r}; give a list, [{labels!r}]")
        wanted = set(labels)
        known = {task.label for task in self.tasks}
        for label in sorted(wanted - known):
            if label in self.absent:
                raise ValueError(f"{self.path}: the data of task {label!r} are not in this bundle; leave it out")
            raise ValueError(f"{self.path}: has no task {label!r}; it has {', '.join(sorted(known))}")
        if not wanted:
            raise ValueError(f"{self.path}: no task is named; name at least one of {', '.join(sorted(known))}")
        return tuple(task for task in self.tasks if task.label in wanted)


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a CORE bundle and check all of it.

    Raises:
        FileNotFoundError: core.yaml, eval_meta_data.csv or every data file is missing.
        ValueError: A file is malformed; the message names the file, the line or the task, and what was expected.
    """
    root = Path(path)
    definitions = _read_definitions(root / "core.yaml")
    baselines = _read_baselines(root / "eval_meta_data.csv")
    tasks, absent = [], []
    for label, definition in definitions.items():
        data = root / "eval_data" / definition["dataset_uri"]
        if not data.is_file():
            absent.append(label)
            continue
        if label not in baselines:
            raise ValueError(f"{root / 'eval_meta_data.csv'}: has no random baseline for task {label!r}; add a row")
        kind: Kind = definition["icl_task_type"]
        tasks.append(
            Task(
                label=label,
                kind=kind,
                shots=definition["num_fewshot"],
                delimiter=definition["continuation_delimiter"],
                baseline=baselines[label],
                sha256=sha256_file(data),
                examples=_read_examples(data, kind),
            )
        )
    if not tasks:
        raise FileNotFoundError(f"{root / 'eval_data'}: holds the data of none of core.yaml's {len(absent)} tasks")
    return Bundle(path=root, tasks=tuple(tasks), absent=tuple(absent))


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a bundle holds core.yaml, eval_meta_data.csv and eval_data/")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error})") from error


# The fields of every task in core.yaml, by label, with `num_fewshot` reduced to its one number.
def _read_definitions(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = parse_yaml(_read_text(path))
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    entries = content.get("icl_tasks") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: has no list `icl_tasks`")
    definitions: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries, start=1):
        definition = _check_definition(entry, f"{path}: task {number}")
        if definition["label"] in definitions:
            raise ValueError(f"{path}: task {definition['label']!r} is listed twice")
        definitions[definition["label"]] = definition
    return definitions


def _check_definition(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {class_of(entry)}, expected a mapping with label, dataset_uri, …")
    for name in ("label", "dataset_uri", "icl_task_type"):
        if not isinstance(entry.get(name), str) or not entry[name]:
            raise ValueError(f"{where}: {name} is {entry.get(name)!r}, expected a text")
    require_inside_name(entry["dataset_uri"], f"{where}: dataset_uri")
    where = f"{where} ({entry['label']})"
    if entry["icl_task_type"] not in get_args(Kind):
        raise ValueError(f"{where}: icl_task_type is {entry['icl_task_type']!r}, expected {', '.join(get_args(Kind))}")
    shots = entry.get("num_fewshot")
    shots = shots[0] if isinstance(shots, list) and len(shots) == 1 else shots
    if type(shots) is not int or shots < 0:
        raise ValueError(f"{where}: num_fewshot is {entry.get('num_fewshot')!r}, expected one number, 0 or more")
    delimiter = entry.get("continuation_delimiter", DEFAULT_DELIMITER)
    if not isinstance(delimiter, str):
        raise ValueError(f"{where}: continuation_delimiter is {delimiter!r}, expected a text")
    return entry | {"num_fewshot": shots, "continuation_delimiter": delimiter}


# The random baseline of every task in eval_meta_data.csv, as a fraction.
def _read_baselines(path: Path) -> dict[str, float]:
    reader = csv.DictReader(_read_text(path).splitlines())
    missing = {"Eval Task", "Random baseline"} - set(reader.fieldnames or ())
    if missing:
        raise ValueError(f"{path}: has no column {' or '.join(map(repr, sorted(missing)))} in its first line")
    baselines = {}
    for row in reader:
        text = row["Random baseline"]
        try:
            per_cent = float(text)
        except (TypeError, ValueError):
            per_cent = float("nan")
        if not 0 <= per_cent < 100:
            raise ValueError(
                f"{path}, line {reader.line_num}: random baseline {text!r}, expected a percentage from 0 to under 100"
            )
        baselines[row["Eval Task"]] = per_cent / 100
    return baselines


def _read_examples(path: Path, kind: Kind) -> tuple[Example, ...]:
    examples = []
    # Not splitlines(): it also breaks a JSON line at U+2028 and its like.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        item = parse_json(line, where)
        if not isinstance(item, dict):
            raise ValueError(f"{where}: holds a JSON {type(item).__name__}, expected an object")
        examples.append(_parse_example(item, kind, where))
    if not examples:
        raise ValueError(f"{path}: holds no example")
    return tuple(examples)


def _parse_example(item: Mapping[str, Any], kind: Kind, where: str) -> Example:
    match kind:
        case "multiple_choice":
            query = _text(item, "query", where)
            options = tuple((query, choice) for choice in _texts(item, "choices", where))
        case "schema":
            continuation = _text(item, "continuation", where)
            options = tuple((context, continuation) for context in _texts(item, "context_options", where))
        case "language_modeling":
            # Some contexts end in a blank, which would split the delimiter's blank from the word it belongs to.
            return Example(((_text(item, "context", where).strip(), _text(item, "continuation", where)),), gold=0)
    gold = item.get("gold")
    if type(gold) is not int or not 0 <= gold < len(options):
        raise ValueError(f"{where}: gold is {gold!r}, expected a number from 0 to {len(options) - 1}")
    return Example(options, gold)


def _text(item: Mapping[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name} is {value!r}, expected a text")
    return value


def _texts(item: Mapping[str, Any], name: str, where: str) -> list[str]:
    value = item.get(name)
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{where}: {name} is {value!r}, expected a list of two texts or more")
    return value
