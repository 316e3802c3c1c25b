"""The model card: what it claims is in the records, what was not measured is not on it."""

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_fixtures
import pytest
import yaml
from hub_family import NAMES, change_record
from huggingface_hub import ModelCard, parse_eval_result_entries
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from hf_progressive import cli
from hf_progressive.publishing import Lineage, prepare_publication
from hf_progressive.publishing.lineage import name_pattern
from hf_progressive.records.rung import RungRecord
from hf_progressive.storage import read_json, write_json

run_dir = hub_fixtures.run_dir

SCALES = (1e-2, *(10.0**exponent for exponent in range(0, 16, 3)))
"""Per cent, and the units and suffixes in which large numbers are written."""

NUMBER = re.compile(r"(?<![\w.−-])(−?\d[\d,]*(?:\.\d+)?(?:e[−-]\d+)?)(?![\w.]*\d)")


@pytest.fixture
def run(run_dir: Path, tmp_path: Path) -> Path:
    """A run whose records a test may change."""
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    return copy


def prose(card: str) -> str:
    """The part of a card that people read: without metadata, code and addresses."""
    body = card.split("\n---\n", 1)[1]
    return re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|<[^>]*>", " ", body, flags=re.DOTALL)


def measured(value: Any) -> Iterator[float]:
    """Every number in a record."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from measured(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def is_rounded(text: str, values: set[float]) -> bool:
    plain = text.replace("−", "-").replace(",", "")
    mantissa, _, exponent = plain.partition("e")
    place = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return any(
        abs(abs(value) - abs(float(plain)) * scale) <= 0.500001 * place * scale for value in values for scale in SCALES
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_in_a_record(run_dir: Path, name: str) -> None:
    values = {value for other in NAMES for value in measured(read_json(run_dir / other / "final" / "rung.json"))}
    text = prose(prepare_publication(run_dir / name / "final", f"org/{name}").card)
    place = [f"rung {NAMES.index(name) + 1} of 3", "10¹²", "10⁹"]  # in the ladder; definitions of units
    for phrase in place:
        text = text.replace(phrase, "")
    numbers = NUMBER.findall(text)
    assert len(numbers) > 12
    assert [number for number in numbers if not is_rounded(number, values)] == []


def test_card_of_a_matched_rung(run_dir: Path) -> None:
    publication = prepare_publication(run_dir / "d5" / "final", "org/tiny-d5", license="apache-2.0", language=["code"])
    card = ModelCard(publication.card)
    assert card.data.to_dict() == {
        "base_model": "org/tiny-d4",
        "base_model_relation": "finetune",
        "language": ["code"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "metrics": ["bits_per_byte"],
        "model-index": card.data.to_dict()["model-index"],
        "pipeline_tag": "text-generation",
        "tags": ["hf-progressive", "model-growth", "elastic-weight-consolidation"],
    }
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("bits_per_byte", publication.lineage.rung.bits_per_byte)
    for phrase in (
        "It reached the baseline's figure after 101 GFLOP, 53 % less",
        "[d4](https://huggingface.co/org/tiny-d4)",
        "| [d6](https://huggingface.co/org/tiny-d6) | 186 k |",
        "λ = 0.25 on the squared distance",
        "up to 0.310 times the loss's at a logged step, 0.155 times at the last",
        'grow_checkpoint(parent, "d6", {"n_layer": 6, "n_embd": 48, "n_head": 3})',
        "the Fisher information and the output subspaces",
    ):
        assert phrase in card.text


DENSE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
DENSE |= dict(intermediate_size=64, vocab_size=64, max_position_embeddings=32, bos_token_id=0, eos_token_id=0)
OPT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32, vocab_size=64)
OPT |= dict(max_position_embeddings=32, bos_token_id=0, eos_token_id=0, pad_token_id=1)
EXPERTS = DENSE | dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, norm_topk_prob=True)


@pytest.mark.parametrize(
    ("parent", "child"),
    [
        (Qwen3Config(**DENSE), Qwen3MoeConfig(**EXPERTS)),
        (Qwen3Config(**DENSE), Qwen3MoeConfig(**EXPERTS | {"num_hidden_layers": 3, "num_experts_per_tok": 4})),
        (LlamaConfig(**DENSE), MixtralConfig(**DENSE, num_local_experts=4, num_experts_per_tok=2)),
        (Qwen3MoeConfig(**EXPERTS), Qwen3MoeConfig(**EXPERTS | {"num_experts": 8, "num_experts_per_tok": 4})),
        (LlamaConfig(**DENSE), LlamaConfig(**DENSE | {"head_dim": 16, "max_position_embeddings": 64})),
        (OPTConfig(ffn_dim=64, **OPT), OPTConfig(ffn_dim=96, **OPT)),
        (LlamaConfig(**DENSE), LlamaConfig(**DENSE)),
    ],
    ids=["experts", "and deeper", "mixtral", "more experts", "heads and context", "opt's own name", "nothing grows"],
)
def test_the_command_of_a_card_grows_the_next_rung(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent: PretrainedConfig, child: PretrainedConfig
) -> None:
    monkeypatch.chdir(tmp_path)
    before, wanted = (json.loads(config.to_json_string(use_diff=False)) for config in (parent, child))
    for name, config in (("d5", before), ("d6", wanted)):
        change_record(run / name / "final", config=config)
    AutoModelForCausalLM.from_config(parent).save_pretrained(tmp_path / "org/d5")
    card = prepare_publication(run / "d5" / "final", "org/d5").card
    (command,) = re.findall("`hf-progressive (grow [^`]*)`", card)
    assert cli.main(command.split()) == 0
    if wanted == before:
        wanted["num_hidden_layers"] = 3  # an example that is one
    grown = AutoConfig.from_pretrained("d6")
    sizes = [name for name, value in wanted.items() if type(value) is int]
    assert {name: getattr(grown, name) for name in sizes} == {name: wanted[name] for name in sizes}
    (code,) = re.findall(r"```python\n(from hf_progressive import grow_checkpoint.*?)```", card, flags=re.DOTALL)
    arguments = ast.parse(code.splitlines()[-1], mode="eval").body
    given = {f"{name}={value}" for name, value in ast.literal_eval(arguments.args[2]).items()}
    assert given == set(command.partition("--set ")[2].split())
    assert [word.value.value for word in arguments.keywords] == re.findall(r"--method (\S+)", command)


@pytest.mark.parametrize(
    ("here", "folder"), [("d5", "final"), ("d5/final", "."), ("..", "link"), ("d4", "../d5/final/")]
)
def test_a_card_is_the_same_however_its_folder_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, here: str, folder: str
) -> None:
    whole = prepare_publication(run / "d5" / "final", "org/d5").card
    assert "## The family" in whole
    (run.parent / "link").symlink_to(run / "d5" / "final")
    monkeypatch.chdir(run / here)
    assert prepare_publication(Path(folder), "org/d5").card == whole


def test_a_mixture_is_called_by_its_name(run: Path) -> None:
    config = json.loads(Qwen3MoeConfig(**EXPERTS).to_json_string(use_diff=False))
    change_record(run / "d5" / "final", config=config)
    card = prepare_publication(run / "d5" / "final", "org/d5").card
    assert "A Qwen3-MoE language model of" in card
    assert "It is a stock Qwen3-MoE checkpoint" in card


def test_a_model_that_left_its_match_again_says_so(run: Path) -> None:
    final = run / "d5" / "final"
    before = prepare_publication(final, "org/tiny-d5").card
    assert "left it again" not in before
    change_record(final, gap_bits_per_byte=0.0123)
    text = prepare_publication(final, "org/tiny-d5").card
    assert "53 % less, and left it again: these weights are 0.0123 bits per byte above. All that had gone" in text


def test_what_was_not_measured_is_left_out(run: Path) -> None:
    final = run / "d5" / "final"
    unmeasured = ("cold", "flops_to_match", "gap_bits_per_byte", "saving", "eta", "phi", "growth")
    change_record(final, **dict.fromkeys([*unmeasured, "max_abs_logit_diff", "max_abs_logit"]))
    for estimate in ("fisher", "subspace"):
        (final / "phi" / f"{estimate}.safetensors").unlink()
    change_record(final)
    publication = prepare_publication(final, "org/d5")
    text = publication.card
    about_it = prose(text).partition("## The family")[0]
    for phrase in ("baseline", "η", "Φ", "CORE", "Where it comes from", "logit", " None.", "nan", "{"):
        assert phrase not in about_it, phrase
    assert "license" not in ModelCard(text).data.to_dict()
    assert "No baseline of this rung was trained" in text
    assert "nothing has to be estimated" not in text
    assert "phi/fisher.safetensors" not in publication.files


def test_a_baseline_that_was_not_reached_is_said(run: Path) -> None:
    final = run / "d5" / "final"
    change_record(final, flops_to_match=None, saving=None, eta=None, gap_bits_per_byte=0.0421)
    text = prepare_publication(final, "org/d5").card
    assert "It did not reach the baseline; 0.0421 bits per byte were missing." in text
    assert "| FLOPs to match | not matched |" in text
    assert "saved" not in text.partition("| rung |")[0]


def test_core_is_shown_where_it_was_evaluated(run: Path) -> None:
    task = {"label": "piqa", "shots": 10, "examples": 1838, "accuracy": 0.5712, "standard_error": 0.0115}
    task |= {"centred": -0.0123, "centred_standard_error": 0.0231}
    core = {"name": "CORE (1 of 22 tasks)", "score": -0.0123, "standard_error": 0.0231, "tasks": [task]}
    change_record(run / "d5" / "final", core=core)
    card = ModelCard(prepare_publication(run / "d5" / "final", "org/d5").card)
    assert "CORE (1 of 22 tasks): −0.0123 ± 0.0231" in card.text
    assert "| piqa | 1,838 | 0.5712 ± 0.0115 | −0.0123 ± 0.0231 |" in card.text
    assert [result.metric_value for result in card.data.eval_results][1:] == [-0.0123]


def test_a_hub_dataset_is_named_and_gets_the_hubs_own_form_of_results(run: Path) -> None:
    ladder = read_json(run / "ladder.json")
    ladder["config"]["data"] = {"source": "org/books", "name": "en", "revision": "0123abc"}
    write_json(run / "ladder.json", ladder)
    publication = prepare_publication(run / "d5" / "final", "org/d5")
    card = ModelCard(publication.card)
    assert card.data.datasets == ["org/books"]
    assert card.data.eval_results[0].dataset_config == "en"
    content = publication.files[".eval_results/bits_per_byte.yaml"].content
    (entry,) = parse_eval_result_entries(yaml.safe_load(content))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("org/books", "bits_per_byte", "0123abc")
    assert entry.value == publication.lineage.rung.bits_per_byte
    assert "https://huggingface.co/datasets/org/books" in card.text


def test_a_rung_away_from_its_run_stands_alone(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run_dir / "d5" / "final", copy)
    text = prepare_publication(copy, "org/tiny-d5").card
    assert "one rung of a ladder" in text
    assert "## The family" not in text
    assert ModelCard(text).data.base_model == "org/tiny-d4"
    # Without the rung's name in the repository's, nothing is known about the others.
    text = prepare_publication(copy, "org/best").card
    assert ModelCard(text).data.base_model is None
    assert "grown from d4," in text


def test_the_same_records_give_the_same_bytes(run_dir: Path) -> None:
    first, second = (prepare_publication(run_dir / "d6" / "final", "org/d6") for _ in range(2))
    assert first.files == second.files
    assert first.tag == second.tag


def test_the_tag_follows_the_rung_and_not_its_card(run: Path) -> None:
    final = run / "d4" / "final"
    before = prepare_publication(final, "org/d4")
    change_record(run / "d6" / "final", bits_per_byte=2.5)
    family_changed = prepare_publication(final, "org/d4", license="mit")
    assert family_changed.card != before.card
    assert family_changed.tag == before.tag
    change_record(final, bits_per_byte=2.5)
    assert prepare_publication(final, "org/d4").tag != before.tag


def test_what_is_published_does_not_tell_how_long_it_took(run: Path) -> None:
    final = run / "d5" / "final"
    before = prepare_publication(final, "org/d5")
    record = read_json(final / "rung.json")
    speed = {"tokens_per_second": 3.0, "mfu": None, "seconds": {"training": 9.0}, "device": "cpu", "processes": 1}
    change_record(final, seconds={"train": 1234.5}, throughput=speed, cold=record["cold"] | {"seconds": 987.6})
    again = prepare_publication(final, "org/d5")
    assert again.files == before.files  # an equal run that took another time
    assert again.tag == before.tag
    content = again.files["rung.json"].content
    assert isinstance(content, bytes)
    published = json.loads(content)
    assert {"seconds", "throughput"}.isdisjoint(published)
    assert RungRecord.from_dict(published).without_times() == RungRecord.read(final / "rung.json").without_times()


@pytest.mark.parametrize(
    ("repo_id", "name", "pattern"),
    [
        ("org/d4", "d4", "org/{name}"),
        ("d4/gpt2-d4", "d4", "d4/gpt2-{name}"),
        ("org/d44", "d4", None),
        ("org/l6w96.v2", "l6w96", "org/{name}.v2"),
    ],
)
def test_names_of_the_family(repo_id: str, name: str, pattern: str | None) -> None:
    assert name_pattern(repo_id, name) == pattern


def test_lineage_of_the_first_rung(run_dir: Path) -> None:
    lineage = Lineage.read(run_dir / "d4" / "final", "org/d4")
    assert lineage.parent_repo_id is None
    assert lineage.child is not None
    assert lineage.child.name == "d5"
    assert [rung.name for rung in lineage.family] == NAMES


def test_a_rung_whose_method_gives_the_function_up_does_not_start_from_its_parent_s(run: Path) -> None:
    final = run / NAMES[-1] / "final"
    exactly = prepare_publication(final, "org/tiny").card
    growth = {**read_json(final / "rung.json")["growth"], "preserves_function": False}
    change_record(final, growth=growth)
    assert "| Started from | the parent's function: logits" in exactly
    assert "| Started from | not the parent's function: logits" in prepare_publication(final, "org/tiny").card
