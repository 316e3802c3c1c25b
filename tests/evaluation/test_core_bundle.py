"""Reading a CORE bundle, and what is said when one is wrong."""

import json

import pytest
from core_bundle_writer import varied_tasks, write_bundle

from hf_progressive.evaluation.core.bundle import CORE_TASKS, load_bundle


@pytest.fixture
def bundle_dir(tmp_path):
    return write_bundle(tmp_path, varied_tasks(3), absent=["squad"])


def test_reads_tasks_in_order_with_what_they_need(bundle_dir):
    bundle = load_bundle(bundle_dir)
    assert [task.label for task in bundle.tasks] == ["arc_easy", "commonsense_qa", "winograd", "jeopardy"]
    assert bundle.absent == ("squad",)
    arc, letters, schema, language = bundle.tasks
    assert (arc.kind, arc.shots, arc.delimiter, arc.baseline) == ("multiple_choice", 3, "\nAnswer: ", 0.25)
    assert letters.delimiter == " "
    assert letters.baseline == pytest.approx(0.403)
    assert len({context for context, _ in arc.examples[0].options}) == 1
    assert len({continuation for _, continuation in schema.examples[0].options}) == 1
    ((context, _),) = language.examples[0].options
    assert context == context.strip()


def test_keeps_line_separators_inside_a_text(bundle_dir):
    file = bundle_dir / "eval_data/language_modeling/jeopardy.jsonl"
    file.write_text(json.dumps({"context": "a\u2028b", "continuation": "c"}, ensure_ascii=False) + "\n\n")
    assert load_bundle(bundle_dir).select(["jeopardy"])[0].examples[0].options == (("a\u2028b", "c"),)


def test_core_has_twenty_two_tasks():
    assert len(set(CORE_TASKS)) == 22


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["squad"], "the data of task 'squad' are not in this bundle; leave it out"),
        (["piqua"], "has no task 'piqua'; it has arc_easy, commonsense_qa, jeopardy, winograd"),
        ([], "no task is named; name at least one of arc_easy"),
    ],
)
def test_selecting_says_what_there_is(bundle_dir, labels, message):
    with pytest.raises(ValueError, match=message):
        load_bundle(bundle_dir).select(labels)


@pytest.mark.parametrize("name", ["core.yaml", "eval_meta_data.csv"])
def test_a_missing_file_is_named(bundle_dir, name):
    (bundle_dir / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file; a bundle holds core.yaml, eval_meta_data.csv"):
        load_bundle(bundle_dir)


def test_a_bundle_without_any_data_is_refused(tmp_path):
    write_bundle(tmp_path, {}, absent=["squad", "coqa"])
    with pytest.raises(FileNotFoundError, match="eval_data: holds the data of none of core.yaml's 2 tasks"):
        load_bundle(tmp_path)


ENTRY = "{label: a, dataset_uri: a.jsonl, icl_task_type: schema, num_fewshot: [0]}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("icl_tasks: [", "core.yaml: not valid YAML"),
        ("tasks: []", "core.yaml: has no list `icl_tasks`"),
        ("icl_tasks: [3]", "core.yaml: task 1 is an int, expected a mapping"),
        ("icl_tasks: [{dataset_uri: x}]", "core.yaml: task 1: label is None, expected a text"),
        (f"icl_tasks: [{ENTRY}, {ENTRY}]", "core.yaml: task 'a' is listed twice"),
        (f"icl_tasks: [{ENTRY.replace('schema', 'essay')}]", r"task 1 \(a\): icl_task_type is 'essay', expected mult"),
        (f"icl_tasks: [{ENTRY.replace('[0]', '[0, 5]')}]", r"num_fewshot is \[0, 5\], expected one number, 0 or more"),
        (f"icl_tasks: [{ENTRY.replace('[0]', '-1')}]", "num_fewshot is -1, expected one number"),
        (
            f"icl_tasks: [{ENTRY[:-1]}, continuation_delimiter: 3}}]",
            "continuation_delimiter is 3, expected a text",
        ),
    ],
)
def test_a_malformed_definition_is_located(bundle_dir, text, message):
    (bundle_dir / "core.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_bundle(bundle_dir)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Eval Task,Score\n", "eval_meta_data.csv: has no column 'Random baseline' in its first line"),
        ("", "has no column 'Eval Task' or 'Random baseline'"),
        ("Eval Task,Random baseline\narc_easy,many\n", "line 2: random baseline 'many', expected a percentage from 0"),
        ("Eval Task,Random baseline\narc_easy,100\n", "line 2: random baseline '100', expected a percentage"),
        ("Eval Task,Random baseline\narc_easy\n", "line 2: random baseline None, expected a percentage"),
        ("Eval Task,Random baseline\nwinograd,50\n", "has no random baseline for task 'arc_easy'; add a row"),
    ],
)
def test_malformed_baselines_are_located(bundle_dir, text, message):
    (bundle_dir / "eval_meta_data.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_bundle(bundle_dir)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("multiple_choice/arc_easy", '{"query": "a"', "arc_easy.jsonl, line 2: not valid JSON"),
        ("multiple_choice/arc_easy", "[]", "line 2: holds a JSON list, expected an object"),
        ("multiple_choice/arc_easy", '{"choices": ["a", "b"], "gold": 0}', "line 2: query is None, expected a text"),
        (
            "multiple_choice/arc_easy",
            '{"query": "a", "choices": ["b"], "gold": 0}',
            r"choices is \['b'\], expected a list of two texts or more",
        ),
        (
            "multiple_choice/arc_easy",
            '{"query": "a", "choices": ["b", "c"], "gold": 2}',
            "gold is 2, expected a number from 0 to 1",
        ),
        ("schema/winograd", '{"context_options": ["a", "b"], "continuation": "c"}', "gold is None, expected a number"),
        ("schema/winograd", '{"context_options": ["a", 1], "continuation": "c"}', r"context_options is \['a', 1\]"),
        ("language_modeling/jeopardy", '{"context": "a"}', "line 2: continuation is None, expected a text"),
    ],
)
def test_a_malformed_example_is_located(bundle_dir, file, line, message):
    path = bundle_dir / f"eval_data/{file}.jsonl"
    path.write_text(path.read_text().split("\n")[0] + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        load_bundle(bundle_dir)


@pytest.mark.parametrize(("content", "message"), [(b"\n", "holds no example"), (b"\xff\xfe", "not UTF-8 text")])
def test_an_unreadable_data_file_is_named(bundle_dir, content, message):
    (bundle_dir / "eval_data/schema/winograd.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=f"winograd.jsonl: {message}"):
        load_bundle(bundle_dir)
