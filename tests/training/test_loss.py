"""The loss without the logits: against plain cross-entropy in float64, against the stock model, and compiled."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, PrinterCallback, set_seed

from hf_progressive.training import loss as module
from hf_progressive.training.loss import causal_loss, return_loss_alone
from hf_progressive.training.precision import BLOCK_ATTENTION, attend_without_masks, blocks_of_one_size
from hf_progressive.training.trainer import ProgressiveTrainer, ProgressiveTrainingArguments

VOCABULARY, CONTEXT = 61, 12
SIZE = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8,
    "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": CONTEXT, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
GPT2_SIZE = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT, "vocab_size": VOCABULARY}
FAMILIES = {
    "gpt2": GPT2_SIZE | {"bos_token_id": 1, "eos_token_id": 1},
    "gemma": SIZE,
    "gemma2": SIZE | {"final_logit_softcapping": 1.5},
    "gemma3_text": SIZE,
    "granite": SIZE | {"logits_scaling": 3.0},
    "nanochat": SIZE | {"final_logit_softcapping": 1.5},
    "qwen3": SIZE,
    "gpt_neox": SIZE,
    "opt": SIZE | {"ffn_dim": 24},
    "falcon": {name: size for name, size in SIZE.items() if name != "head_dim"},
    "phi3": SIZE,
    "olmo3": SIZE,
}


class Blocks(Dataset):
    def __init__(self, count):
        self.blocks = torch.randint(VOCABULARY, (count, CONTEXT), generator=torch.Generator().manual_seed(5))

    def __len__(self):
        return len(self.blocks)

    def __getitem__(self, index):
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


def build(family):
    set_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family]))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()  # no dropout


@pytest.fixture
def always_in_parts(monkeypatch):
    monkeypatch.setattr(module, "LARGE_LOGITS_BYTES", 1)
    monkeypatch.setattr(module, "PART_BYTES", 4 * VOCABULARY * 5)  # 5 rows


@pytest.mark.parametrize(("divisor", "cap"), [(1.0, None), (3.0, None), (1.0, 0.7), (2.0, 0.7)])
def test_value_and_gradient_are_those_of_cross_entropy_in_float64(divisor, cap, always_in_parts):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(17, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(VOCABULARY, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(VOCABULARY, (17,), generator=generator)
    targets[[2, 3, 16]] = -100
    logits = hidden @ head.T / divisor
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    expected = functional.cross_entropy(logits, targets, reduction="sum") / 7
    expected_gradients = torch.autograd.grad(expected, (hidden, head))
    value = causal_loss(hidden, head, targets, divisor=divisor, soft_cap=cap) / 7
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(torch.autograd.grad(value, (hidden, head)), expected_gradients, rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        again = causal_loss(hidden, head, targets, divisor=divisor, soft_cap=cap) / 7
    assert torch.equal(again, value)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("items", [None, torch.tensor(50)])
def test_a_models_loss_in_parts_is_the_stock_one(family, items, always_in_parts):
    model, stock = build(family), build(family)
    assert return_loss_alone(model)
    ids = Blocks(5).blocks
    labels = ids.clone()
    labels[:, 0], labels[2, 3:6] = -100, -100
    batch = {"input_ids": ids, "labels": labels} | ({} if items is None else {"num_items_in_batch": items})
    whole = model(**batch)
    assert torch.equal(whole.logits, stock(**batch).logits)
    alone = model(**batch, loss_alone=True)
    assert alone.logits is None
    stock(**batch).loss.backward()
    alone.loss.backward()
    torch.testing.assert_close(alone.loss, whole.loss, rtol=1e-6, atol=0)
    for (name, ours), theirs in zip(model.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-5, atol=2e-6, msg=name)


def test_a_small_vocabularys_loss_is_the_stock_one_to_the_bit_and_a_copy_is_its_own_model():
    model, ids = build("gpt2"), Blocks(5).blocks
    expected = model(input_ids=ids, labels=ids).loss
    return_loss_alone(model)
    assert torch.equal(model(input_ids=ids, labels=ids, loss_alone=True).loss, expected)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.transformer.wte.weight.zero_()
    assert torch.equal(model(input_ids=ids, labels=ids, loss_alone=True).loss, expected)
    assert not torch.equal(copied(input_ids=ids, labels=ids, loss_alone=True).loss, expected)
    assert not return_loss_alone(model)  # twice


def test_attention_without_masks_is_the_same_and_leaves_no_trace(tmp_path):
    model, ids = build("qwen3"), Blocks(5).blocks
    expected = model(input_ids=ids).logits
    assert attend_without_masks(model, CONTEXT)
    assert torch.equal(model(input_ids=ids).logits, expected)
    model.save_pretrained(tmp_path)
    assert BLOCK_ATTENTION not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
    windowed = build("qwen3")
    windowed.config.sliding_window = CONTEXT - 1
    assert not attend_without_masks(windowed, CONTEXT)


def train(folder, *, compiled, bf16=False):
    """6 steps of 2 × 4 blocks; evaluation from the start, of 8 blocks, 8 and 3."""
    model = build("gpt2")
    attend_without_masks(model, CONTEXT)
    args = ProgressiveTrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, per_device_eval_batch_size=8, max_steps=6,
        gradient_accumulation_steps=2, logging_steps=2, use_cpu=True, report_to="none", disable_tqdm=True, bf16=bf16,
        save_strategy="no", eval_strategy="steps", eval_steps=2, eval_on_start=True, torch_compile=compiled,
        torch_compile_backend="aot_eager" if compiled else None,
    )  # fmt: skip
    trainer = ProgressiveTrainer(model, args, train_dataset=Blocks(64), eval_dataset=Blocks(19))
    trainer.remove_callback(PrinterCallback)
    torch.compiler.reset()
    counters.clear()
    with blocks_of_one_size(trainer):
        trainer.train()
    trainer.save_pretrained_whole(folder / "final")
    return trainer


@pytest.mark.parametrize(("in_parts", "bf16"), [(False, False), pytest.param(True, True, marks=pytest.mark.slow)])
def test_compiled_training_has_one_graph_and_evaluation_one(tmp_path, in_parts, bf16, request):
    if in_parts:
        request.getfixturevalue("always_in_parts")
    compiled = train(tmp_path / "compiled", compiled=True, bf16=bf16)
    assert dict(counters["graph_break"]) == {}
    assert counters["stats"]["unique_graphs"] == 2
    eager = train(tmp_path / "eager", compiled=False, bf16=bf16)
    for key in ("loss", "eval_loss"):
        figures = [[entry[key] for entry in t.state.log_history if key in entry] for t in (compiled, eager)]
        assert figures[0] == pytest.approx(figures[1], rel=2e-3 if bf16 else 1e-5)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "compiled" / "final")
    assert stock.state_dict().keys() == build("gpt2").state_dict().keys()
