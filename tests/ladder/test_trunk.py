"""A trunk ladder: against a loop in plain PyTorch, its members, its record, and what it costs."""

import math
from pathlib import Path

import pytest
import torch
from ladder_fixtures import NAMES, RUNGS, Finished
from safetensors.torch import load_file
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, PreTrainedModel, set_seed
from trunk_fixtures import DECAY, MEMBER_DECAY, REWARM, UNTIL, write_trunk

from hf_progressive.config import load_ladder_config
from hf_progressive.data import Corpus, prepare_corpus, token_byte_lengths
from hf_progressive.evaluation.bits_per_byte import bits_per_byte
from hf_progressive.growth import grow_model
from hf_progressive.ladder.rung_loop import run_ladder
from hf_progressive.planning.ladder_plan import plan_ladder
from hf_progressive.publishing import prepare_publication
from hf_progressive.records.ladder import read_run
from hf_progressive.report import write_report
from hf_progressive.report.ladder_tables import flop_unit

RATE, WARMUP, BLOCKS = 3e-3, 0.05, 4
FIELDS = [{key: value for key, value in rung.items() if key != "name"} for rung in RUNGS]


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("trunk")
    path = write_trunk(folder)
    return path, folder / "run", run_ladder(load_ladder_config(path), folder / "run")


def corpus_of(path: Path) -> Corpus:
    config = load_ladder_config(path)
    return prepare_corpus(config.data, config.model.context, path.parent / "run" / "data")


class PlainLoop:
    """AdamW on consecutive blocks, with a rate given for each step."""

    def __init__(self, model: PreTrainedModel, corpus: Corpus) -> None:
        self.model, self.corpus = model.train(), corpus
        matrices = [p for p in model.parameters() if p.ndim == 2]
        others = [p for p in model.parameters() if p.ndim != 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))

    def step(self, block: int, rate: float) -> None:
        rows = torch.stack([self.corpus.train[block + row]["input_ids"] for row in range(BLOCKS)])
        self.model(rows, labels=rows).loss.backward()
        clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()


def assert_equal_weights(folder: Path, model: PreTrainedModel) -> None:
    found, expected = load_file(folder / "model.safetensors"), dict(model.named_parameters())
    assert found.keys() <= expected.keys() | {"lm_head.weight"}
    for name, value in found.items():
        theirs = expected[name].detach()
        if name.endswith("c_attn.bias"):
            # A bias of the keys adds the same to all of a query's scores: its gradient is rounding, of which Adam
            # makes whole steps. What is left is that of queries and values.
            value, theirs = (torch.cat([part.chunk(3)[0], part.chunk(3)[2]]) for part in (value, theirs))
        torch.testing.assert_close(value, theirs, rtol=0, atol=3e-5, msg=name)


def test_weights_are_those_of_a_plain_loop_that_grows_on_its_way(trunk: Finished) -> None:
    path, run, _ = trunk
    corpus, tokenizer = corpus_of(path), AutoTokenizer.from_pretrained(run / NAMES[0] / "final")
    # The last rung's budget: .2 tokens for each weight of its blocks and its head, in steps of 4 blocks of 32.
    width, layers = FIELDS[-1]["n_embd"], FIELDS[-1]["n_layer"]
    counted = layers * (12 * width**2 + 13 * width) + 2 * width + 300 * width
    budget = round(0.2 * counted / (BLOCKS * 32))
    ends = [math.floor(until * budget + 0.5) for until in UNTIL]
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    nothing = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "pad_token_id": tokenizer.pad_token_id}
    set_seed(0)
    config = GPT2Config(vocab_size=300, n_positions=32, **FIELDS[0], **tokens, **nothing)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for index, (start, end) in enumerate(zip([0, *ends], [*ends, budget], strict=True)):
        if index:
            model = grow_model(model, FIELDS[index], seed=index)
        loop = PlainLoop(model, corpus)
        rising = math.ceil((REWARM if index else WARMUP) * budget)
        is_last = end == budget
        stable = budget - math.ceil(DECAY * budget) if is_last else end
        for step in range(start, end):
            rise = min((step - start) / rising, 1.0)
            fall = 1 - max(0, step - stable) / (end - stable) if is_last else 1.0
            loop.step(step * BLOCKS, RATE * min(rise, fall))
        if is_last:
            assert_equal_weights(run / NAMES[index] / "final", model)
            continue
        assert_equal_weights(run / NAMES[index] / "stable", model)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        length = math.ceil(MEMBER_DECAY * end)
        for step in range(length):  # on a branch, whose weights and blocks the trunk knows nothing of
            loop.step((end + step) * BLOCKS, RATE * (1 - step / length))
        assert_equal_weights(run / NAMES[index] / "final", model)
        model.load_state_dict(before)


def test_what_a_member_s_decay_cost_is_its_own_and_the_trunk_all_that_is_inherited(trunk: Finished) -> None:
    path, run, results = trunk
    plan = plan_ladder(load_ladder_config(path))
    records = read_run(run).rungs
    passed, block = 0.0, 0
    for record, rung, until in zip(records, plan.rungs, (*UNTIL, 1.0), strict=True):
        part = record.trunk
        assert part is not None
        assert part.until == until
        assert record.data.first_block == rung.first_block == block
        assert record.flops.inherited == passed
        assert record.flops.train == rung.flops == record.tokens * record.flops.per_token
        branch = 0 if record is records[-1] else math.ceil(MEMBER_DECAY * block_steps(part.steps, block))
        assert record.flops.branch == branch * 128 * record.flops.per_token
        assert record.flops.train == part.flops + record.flops.branch
        assert record.tokens == part.tokens + branch * 128
        passed += part.flops
        block += part.steps * BLOCKS
    assert passed == plan.to_dict()["flops"]["last_grown"]
    assert block == plan.rungs[-1].size.steps * BLOCKS
    assert sum(record.flops.train for record in records) == plan.to_dict()["flops"]["all_inherited"]
    last, totals = records[-1], read_run(run).ladder.totals
    assert last.cold is not None
    assert totals is not None
    if last.flops_to_match is not None:
        cost = (last.flops.inherited + last.flops_to_match) / last.cold.flops
        assert last.last_model_cost == pytest.approx(cost)
        assert totals.last_model_cost == pytest.approx(cost)


def block_steps(steps: int, first_block: int) -> int:
    """Steps of the trunk from its start to a part's end."""
    return first_block // BLOCKS + steps


def test_a_member_by_average_is_the_mean_of_the_trunk_s_last_weights(tmp_path: Path) -> None:
    path = write_trunk(tmp_path, trunk={"member": "average", "average_over": 0.5, "average_of": 3}, cold="none")
    run = tmp_path / "run"
    results = run_ladder(load_ladder_config(path), run)
    corpus, first = corpus_of(path), results[0].record
    steps, window = first["trunk"]["steps"], math.ceil(0.5 * first["trunk"]["steps"])
    chosen = [steps - window + math.ceil(window * i / 3) for i in (1, 2, 3)]
    assert first["trunk"]["averaged_steps"] == chosen
    assert first["flops"]["branch"] == 0
    assert first["tokens"] == steps * 128
    loop = PlainLoop(AutoModelForCausalLM.from_pretrained(run / NAMES[0] / "init", dtype=torch.float32), corpus)
    rising = math.ceil(WARMUP * plan_ladder(load_ladder_config(path)).rungs[-1].size.steps)
    taken = []
    for step in range(steps):
        loop.step(step * BLOCKS, RATE * min(step / rising, 1.0))
        if step + 1 in chosen:
            taken.append({name: value.double() for name, value in loop.model.state_dict().items()})
    with torch.no_grad():
        for name, value in loop.model.state_dict().items():
            value.copy_(sum(weights[name] for weights in taken) / 3)
    assert_equal_weights(run / NAMES[0] / "final", loop.model)
    measured = bits_per_byte(loop.model, corpus.validation, token_byte_lengths(corpus.tokenizer), progress=False)
    assert first["bits_per_byte"] == pytest.approx(measured["bits_per_byte"], rel=1e-5)
    last, before = first["curve"][-1], first["curve"][-2]
    assert last["bits_per_byte"] == first["bits_per_byte"] != before["bits_per_byte"]
    assert last["flops"] == before["flops"] == first["flops"]["train"]
    assert not (run / NAMES[0] / "averaged").exists()
    assert (run / NAMES[0] / "stable").is_dir()


def test_a_member_may_be_the_trunk_s_weights_as_they_are(tmp_path: Path) -> None:
    path = write_trunk(tmp_path, trunk={"member": "none"}, cold="none")
    first, *_ = run_ladder(load_ladder_config(path), tmp_path / "run")
    final, stable = (
        load_file(tmp_path / "run" / NAMES[0] / name / "model.safetensors") for name in ("final", "stable")
    )
    assert all(torch.equal(value, stable[name]) for name, value in final.items())
    assert first.record["trunk"]["decay_steps"] == first.record["flops"]["branch"] == 0


def test_report_and_card_tell_of_branches(trunk: Finished) -> None:
    _, run, results = trunk
    first, second, last = read_run(run).rungs
    unit = flop_unit(read_run(run).rungs)
    markdown = write_report(run).markdown.read_text()
    assert f"{NAMES[0]} and {NAMES[1]} are branches off one constant-rate run, the trunk" in markdown
    cost = unit.text(first.flops.branch + second.flops.branch)
    assert f"No later model inherits what that cost, {cost} in all." in markdown
    assert f"trunk: {NAMES[0]} until 0.25, {NAMES[1]} until 0.5 of the last rung's tokens" in markdown
    cards = [prepare_publication(result.folder, f"org/{result.name}").card for result in results]
    assert first.trunk is not None
    assert f"on a branch off the trunk, over whose {first.trunk.decay_steps} steps the rate fell" in cards[0]
    assert f"passed through the size of [{NAMES[1]}]" in cards[2]
    assert "by the trunk's own decay" in cards[2]
    inherited = flop_unit([last]).text(last.flops.inherited)
    assert f"{inherited}, spent on the trunk before it" in cards[2]
    assert last.cold is not None
    assert last.learning_rate == last.cold.learning_rate == RATE
