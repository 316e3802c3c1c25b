"""What a model is asked: the texts, the few-shot draw, the tokens scored, the cut."""

import random

import pytest
from core_bundle_writer import WORDS, train_tokenizer, varied_tasks, write_bundle
from core_reference import read_task, render
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_progressive.evaluation.core.bundle import Example, Task, load_bundle
from hf_progressive.evaluation.core.prompts import (
    build_requests,
    common_prefix,
    draw_examples,
    few_shot_indices,
    render_prompts,
)


def make_task(kind, options, *, gold=0, shots=0, delimiter=" "):
    return Task(
        label="toy",
        kind=kind,
        shots=shots,
        delimiter=delimiter,
        baseline=0.0,
        sha256="",
        examples=(Example(tuple(options), gold),),
    )


def merging_tokenizer(*merges, bos=None):
    """Characters as tokens, and the merges named, whatever stands before or after."""
    vocabulary = ["<s>", *"abcdefghijklmnopqrstuvwxyz .?"] + ["".join(pair) for pair in merges]
    bpe = models.BPE({token: index for index, token in enumerate(vocabulary)}, list(merges))
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(bpe), bos_token=bos)


def scored(task, tokenizer, context=None):
    """The scored tokens of every option of the only example, as texts."""
    (request,) = build_requests(task, task.examples, [0], tokenizer, context)
    return [tokenizer.convert_ids_to_tokens(list(row.tokens[row.start :])) for row in request.rows]


@given(population=st.integers(1, 60), data=st.data(), shots=st.integers(0, 12))
def test_the_draw_is_the_seeded_one_over_the_others(population, data, shots):
    index = data.draw(st.integers(0, population - 1))
    others = [i for i in range(population) if i != index]
    expected = random.Random(1234 + index).sample(others, min(shots, len(others)))
    assert few_shot_indices(index, population, shots) == expected


@given(st.lists(st.lists(st.integers(0, 2), max_size=6).map(tuple), min_size=1, max_size=4))
def test_common_prefix_is_the_longest_one(sequences):
    length = common_prefix(sequences)
    assert len({sequence[:length] for sequence in sequences}) == 1
    longer = {sequence[: length + 1] for sequence in sequences}
    assert len(longer) > 1 or min(map(len, sequences)) == length


def test_the_shuffle_comes_before_the_cut(tmp_path):
    task = load_bundle(write_bundle(tmp_path, varied_tasks())).tasks[0]
    shuffled = list(task.examples)
    random.Random(1337).shuffle(shuffled)
    assert draw_examples(task) == tuple(shuffled)
    assert draw_examples(task, 5) == tuple(shuffled[:5])
    with pytest.raises(ValueError, match="max_per_task is 0; give 1 or more"):
        draw_examples(task, 0)


def test_texts_as_written_by_hand():
    items = [Example((("Q1?", "no"), ("Q1?", "yes")), 1), Example((("Q2?", "red"), ("Q2?", "blue")), 0)]
    task = make_task("multiple_choice", [], shots=1, delimiter="\nAnswer: ")
    assert render_prompts(task, items, 0) == [f"Q2?\nAnswer: red\n\nQ1?\nAnswer: {answer}" for answer in ("no", "yes")]
    task = make_task("schema", [], shots=1)
    items = [Example((("he", "ran"), ("she", "ran")), 1), Example((("it", "hid"), ("they", "hid")), 1)]
    assert render_prompts(task, items, 0) == ["they hid\n\nhe ran", "they hid\n\nshe ran"]
    task = make_task("language_modeling", [], delimiter="\nAnswer: ")
    assert render_prompts(task, [Example((("2+2", "4"),), 0)], 0) == ["2+2\nAnswer: 4", "2+2\nAnswer:"]


@pytest.mark.parametrize("max_per_task", [None, 3])
def test_texts_agree_with_the_reference(tmp_path, max_per_task):
    for task in load_bundle(write_bundle(tmp_path, varied_tasks())).tasks:
        entry, items = read_task(tmp_path, task.label)
        examples = draw_examples(task, max_per_task)
        for index in range(len(examples)):
            assert render_prompts(task, examples, index) == render(entry, items[:max_per_task], index)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param(["cat", "dog"], [["c", "a", "t"], ["d", "o", "g"]], id="apart"),
        pytest.param(["cat", "cow"], [["a", "t"], ["o", "w"]], id="alike at first"),
        pytest.param(["do", "dog"], [["o"], ["o", "g"]], id="one begins the other"),
        pytest.param(["go", "go"], [["o"], ["o"]], id="the same"),
    ],
)
def test_multiple_choice_scores_from_the_first_difference(options, expected):
    task = make_task("multiple_choice", [("a", option) for option in options])
    assert scored(task, merging_tokenizer(bos="<s>")) == expected


def test_a_merge_across_the_border_is_scored_whole():
    tokenizer = merging_tokenizer((" ", "c"), ("a", " c"), bos="<s>")
    assert tokenizer.tokenize("a cb") == ["a c", "b"]
    task = make_task("multiple_choice", [("a", "cb"), ("a", "db")])
    assert scored(task, tokenizer) == [["a c", "b"], ["a", " ", "d", "b"]]
    task = make_task("language_modeling", [("a", "cb")])
    assert scored(task, tokenizer) == [["a c", "b"]]
    task = make_task("schema", [("a", "cb"), ("b", "cb")])
    assert scored(task, tokenizer) == [["b"], ["b"]]


def test_a_continuation_that_merges_away_leaves_its_last_token():
    tokenizer = merging_tokenizer(("a", "."), ("b", "."), bos="<s>")
    assert scored(make_task("schema", [("xa", "."), ("xb", ".")], delimiter=""), tokenizer) == [["a."], ["b."]]
    assert scored(make_task("language_modeling", [("xa", ".")], delimiter=""), tokenizer) == [["a."]]
    assert scored(make_task("language_modeling", [("xa", "")], delimiter=""), tokenizer) == [["a"]]


def test_the_delimiter_s_blank_belongs_to_the_continuation():
    tokenizer = train_tokenizer([" ".join(WORDS)] * 3)
    task = make_task("language_modeling", [("stone", "river")], delimiter=" and ")
    ((*_, last),) = scored(task, tokenizer)
    assert last == "Ġriver"


@pytest.mark.parametrize("bos", [None, "<s>"])
def test_the_beginning_of_sequence_token_is_there_if_there_is_one(bos):
    tokenizer = merging_tokenizer(bos=bos)
    task = make_task("multiple_choice", [("ab", "c"), ("ab", "d")])
    (request,) = build_requests(task, task.examples, [0], tokenizer, None)
    tokens = tokenizer.convert_ids_to_tokens(list(request.rows[0].tokens))
    assert tokens == ([bos] if bos else []) + ["a", "b", " ", "c"]


def test_without_anything_before_it_the_first_token_is_not_scored():
    task = make_task("multiple_choice", [("", "ab"), ("", "ba")], delimiter="")
    assert scored(task, merging_tokenizer()) == [["b"], ["a"]]
    task = make_task("multiple_choice", [("", "a"), ("", "b")], delimiter="")
    assert scored(task, merging_tokenizer(bos="<s>")) == [["a"], ["b"]]
    with pytest.raises(ValueError, match="task 'toy', example 0: an option is a single token with nothing before it"):
        scored(task, merging_tokenizer())


def test_long_texts_keep_their_end_and_say_so():
    tokenizer = merging_tokenizer(bos="<s>")
    task = make_task("multiple_choice", [("abcdef", "gh"), ("abcdef", "ijk")])
    (request,) = build_requests(task, task.examples, [0], tokenizer, 5)
    assert request.truncated
    assert [tokenizer.convert_ids_to_tokens(list(row.tokens)) for row in request.rows] == [
        ["e", "f", " ", "g", "h"],
        ["f", " ", "i", "j", "k"],
    ]
    assert scored(task, tokenizer, 5) == [["g", "h"], ["i", "j", "k"]]
    (request,) = build_requests(task, task.examples, [0], tokenizer, 11)
    assert not request.truncated


def test_a_continuation_longer_than_the_context_is_scored_on_what_fits():
    task = make_task("language_modeling", [("ab", "cdefgh")])
    assert scored(task, merging_tokenizer(bos="<s>"), 4) == [["f", "g", "h"]]
