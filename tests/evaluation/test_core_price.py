"""The tokens that evaluating on CORE reads, counted before there is a tokenizer."""

from core_bundle_writer import write_bundle

from hf_progressive.config import CoreConfig
from hf_progressive.planning.overhead import core_tokens


def test_what_options_share_is_read_once_and_a_task_is_extrapolated_from_its_sample(tmp_path):
    # Every example alike, so that the sample's mean is exact: 400 bytes of context, options of 40 and 80 bytes.
    item = {"query": "q" * 400, "choices": ["a" * 39 + "b", "c" * 80], "gold": 0}
    text = {"context": "x" * 99, "continuation": "y" * 20}
    tasks = {
        "choices": ("multiple_choice", 0, " ", 50, [item] * 100),
        "text": ("language_modeling", 1, " ", 0, [text] * 50),
    }
    bundle = str(write_bundle(tmp_path, tasks))
    choices = 100 * (1 + 401 + 40 + 80)  # the byte before every prompt, the query and its blank, both options
    shot = 99 + 1 + 20 + 2
    prompts = 50 * (1 + shot + 99 + 1 + 20)
    assert core_tokens(CoreConfig(bundle=bundle), 1024) == round((choices + prompts) / 4)
    assert core_tokens(CoreConfig(bundle=bundle, tasks=("choices",), max_per_task=10), 1024) == round(choices / 10 / 4)
