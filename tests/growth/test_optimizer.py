"""Adam's moments: what the child's own optimizer would hold, and steps that commute with growth."""

import copy
import pickle

import pytest
import torch
from growth_models import build, config_of, fields_of, grow, norms_in_full_precision, relative_difference, tokens_for
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from transformers import Trainer, TrainingArguments

from hf_progressive.growth.growth_plan import plan_growth
from hf_progressive.growth.hidden_matrices import hidden_matrices
from hf_progressive.growth.optimizer import grow_optimizer_state, parameter_groups, read_optimizer_state
from hf_progressive.training.muon import MuonWithAdamW

ALL_AXES = {"width": 32, "layers": 3, "heads": 4, "kv_heads": 4, "mlp": 48}


def adamw(model, lr=1e-2):
    """The optimizer Trainer builds, with a weight decay large enough to matter."""
    parameters = dict(model.named_parameters())
    decayed, others = ([parameters[name] for name in names] for names in parameter_groups(model.config))
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr)


def muon(model, lr=1e-2):
    """The optimizer of a trainer with Muon."""
    parameters = dict(model.named_parameters())
    decayed, others, _ = ([parameters[name] for name in names] for names in parameter_groups(model.config, muon=True))
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    matrices = [(parameters[name], parts) for name, parts in hidden_matrices(model).items()]
    return MuonWithAdamW(groups, matrices, lr=lr, muon_lr=lr, weight_decay=0.1)


def train(model, optimizer, steps, *, first=0):
    """Train on the logits of 29 tokens; batches depend on their number alone."""
    for step in range(first, first + steps):
        tokens = torch.randint(0, 29, (4, 9), generator=torch.Generator().manual_seed(step))
        logits = model(tokens).logits[..., :-1, :29]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def entries_by_name(model, optimizer):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: state for parameter, state in optimizer.state.items()}


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen3", "nanochat"])
def test_groups_and_order_are_trainers(model_type, tmp_path):
    model = build(config_of(model_type, tie_word_embeddings=False), dtype=torch.float32)
    trainer = Trainer(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True, weight_decay=0.1))
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer = trainer.create_optimizer()
    groups = tuple([names[parameter] for parameter in group["params"]] for group in optimizer.param_groups)
    assert parameter_groups(model.config) == groups
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


@pytest.mark.parametrize("make", [adamw, muon])
@pytest.mark.parametrize(
    ("model_type", "method", "options"),
    [
        ("gpt2", "tile", {}),
        ("gpt2", "tile", {"uneven": 0.7, "axes": {"mlp": 48, "layers": 3}}),
        ("llama", "exact", {}),
        ("llama", "exact", {"free_scale": 1.0}),
        ("llama", "tile", {}),
        ("llama", "tile", {"uneven": 0.7, "axes": ALL_AXES | {"width": 16}}),
        ("llama", "split", {"noise": 0.0, "axes": ALL_AXES | {"width": 24}}),
        ("qwen3", "exact", {}),
        ("nanochat", "exact", {}),
    ],
)
def test_moments_are_those_of_a_child_that_had_seen_the_same_batches(model_type, method, options, make):
    parent = build(config_of(model_type, tie_word_embeddings=False))
    axes = options.get("axes", ALL_AXES)
    options = {name: value for name, value in options.items() if name != "axes"}
    child, plan = grow(parent, fields_of(model_type, **axes), method=method, **options)
    optimizers = [make(model, lr=0.0) for model in (parent, child)]
    with norms_in_full_precision(parent, child):
        for model, optimizer in zip((parent, child), optimizers, strict=True):
            train(model, optimizer, 3)

    own = entries_by_name(child, optimizers[1])
    fresh = make(child)
    fresh.load_state_dict(grow_optimizer_state(optimizers[0].state_dict(), plan))

    for name, entry in entries_by_name(child, fresh).items():
        inherited = plan.inherited_mask(name)
        assert entry.keys() == own[name].keys()
        for moment in entry.keys() - {"step"}:
            expected = torch.where(inherited, own[name][moment], 0)
            scale = expected.abs().max().item()
            torch.testing.assert_close(entry[moment], expected, rtol=1e-9, atol=1e-11 * scale)
        assert "step" not in entry or entry["step"].item() == (3 if plan.tensor(name).heir else 0)


@pytest.mark.parametrize(
    ("model_type", "growth"),  # nothing that is rescaled, for Adam's steps do not scale with the weights
    [
        ("gpt2", {"layers": 4, "mlp": 40}),
        ("llama", {"layers": 4, "mlp": 40, "heads": 4, "kv_heads": 4}),
        ("nanochat", {"layers": 3, "mlp": 30}),
    ],
)
def test_a_step_then_growth_is_growth_then_a_step_of_what_is_inherited(model_type, growth):
    target = fields_of(model_type, **growth)
    parent = build(config_of(model_type, tie_word_embeddings=False))
    optimizer = adamw(parent)
    train(parent, optimizer, 2)
    child, plan = grow(parent, target, seed=1)
    child_optimizer = adamw(child)
    child_optimizer.load_state_dict(grow_optimizer_state(optimizer.state_dict(), plan))

    before = {name: parameter.detach().clone() for name, parameter in child.named_parameters()}
    train(child, child_optimizer, 1, first=2)
    for name, parameter in child.named_parameters():
        parameter.data = torch.where(plan.inherited_mask(name), parameter.data, before[name])
    train(parent, optimizer, 1, first=2)
    later, _ = grow(parent, target, seed=1)

    for name, parameter in later.named_parameters():
        inherited = plan.inherited_mask(name)
        moved = (dict(child.named_parameters())[name] - parameter)[inherited]
        torch.testing.assert_close(moved, torch.zeros_like(moved), atol=1e-9, rtol=0)
    assert relative_difference(later, child, tokens_for(parent.config)) < 1e-9


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_new_entries_take_the_mean_second_moment_of_their_tensor_if_asked(model_type):
    parent = build(config_of(model_type))
    optimizer = adamw(parent)
    train(parent, optimizer, 2)
    target = fields_of(model_type, **ALL_AXES | {"width": 24, "heads": 3, "kv_heads": 3})
    states = []
    for choice in ("zero", "mean"):
        child, plan = grow(parent, target, new_moments=choice)
        states.append(adamw(child))
        states[-1].load_state_dict(grow_optimizer_state(optimizer.state_dict(), plan))
        states[-1] = entries_by_name(child, states[-1])
    for name, entry in states[1].items():
        old = plan.inherited_mask(name)
        assert torch.equal(entry["exp_avg"], states[0][name]["exp_avg"])
        if not plan.tensor(name).heir:  # at step 0, where bias correction makes steps of the usual size
            assert entry["step"] == 0
            assert not entry["exp_avg_sq"].any()
        else:
            assert torch.equal(entry["exp_avg_sq"][old], states[0][name]["exp_avg_sq"][old])
            mean = sum(entry["exp_avg_sq"][old].tolist()) / int(old.sum())
            assert entry["exp_avg_sq"][~old].tolist() == pytest.approx([mean] * int((~old).sum()))
            assert not states[0][name]["exp_avg_sq"][~old].any()


@pytest.mark.parametrize(("beta2", "first", "largest", "at"), [(0.999, 3.2, 6.6, 12), (0.95, 0.45, 1.1, 20)])
def test_steps_of_entries_whose_moments_are_zero_are_as_long_as_the_docstring_says(beta2, first, largest, at):
    for second, expected in ((0.0, (first, largest, at)), (1.0, (0.1, 1.0, None))):  # gradients of 1, and of 1 before
        weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = torch.optim.AdamW([weight], lr=1.0, betas=(0.9, beta2), weight_decay=0.0, eps=0.0)
        moments = {"exp_avg": torch.zeros_like(weight.data), "exp_avg_sq": torch.full_like(weight.data, second)}
        optimizer.state[weight] = {"step": torch.tensor(1e6), **moments}
        moves = []
        for _ in range(60):
            before = weight.item()
            weight.grad = torch.ones_like(weight)
            optimizer.step()
            moves.append(abs(weight.item() - before))
        assert moves[0] == pytest.approx(expected[0], rel=0.02)
        assert max(moves) == pytest.approx(expected[1], rel=0.01)
        assert expected[2] is None or moves.index(max(moves)) + 1 == expected[2]


def test_training_goes_on_from_a_checkpoint_of_trainer(tmp_path):
    parent = build(config_of("gpt2"), dtype=torch.float32)
    data = [{"input_ids": tokens, "labels": tokens} for tokens in tokens_for(parent.config, batch=8)]
    options = {"per_device_train_batch_size": 4, "use_cpu": True, "report_to": [], "disable_tqdm": True}
    arguments = TrainingArguments(str(tmp_path / "parent"), max_steps=2, save_steps=2, **options)
    Trainer(model=parent, args=arguments, train_dataset=data).train()

    state = read_optimizer_state(tmp_path / "parent" / "checkpoint-2" / "optimizer.pt")
    child, plan = grow(parent, {"n_embd": 24, "n_head": 3, "n_layer": 3})
    arguments = TrainingArguments(str(tmp_path / "child"), max_steps=1, save_strategy="no", **options)
    trainer = Trainer(model=child, args=arguments, train_dataset=data)
    trainer.create_optimizer().load_state_dict(grow_optimizer_state(state, plan))
    trainer.train()

    steps = {name: entry["step"].item() for name, entry in entries_by_name(child, trainer.optimizer.optimizer).items()}
    assert {name: 3 if plan.tensor(name).heir else 1 for name in steps} == steps


@pytest.mark.parametrize("make", [adamw, muon])
def test_a_named_state_as_fsdp_gathers_it_grows_like_a_numbered_one(make):
    parent = build(config_of("llama"))
    optimizer = make(parent)
    train(parent, optimizer, 2)
    child, plan = grow(parent, fields_of("llama", **ALL_AXES))
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)

    named = grow_optimizer_state(get_optimizer_state_dict(parent, optimizer, options=options), plan)
    first, second = make(child), make(child)
    set_optimizer_state_dict(child, first, named, options=options)
    second.load_state_dict(grow_optimizer_state(optimizer.state_dict(), plan))

    expected = entries_by_name(child, second)
    for name, entry in entries_by_name(child, first).items():
        for key, value in entry.items():
            assert torch.equal(value, expected[name][key]), (name, key)


def test_the_parents_state_stays_as_it_was():
    parent = build(config_of("gpt2"))
    optimizer = adamw(parent)
    train(parent, optimizer, 1)
    state = optimizer.state_dict()
    before = copy.deepcopy(state)
    grow_optimizer_state(state, plan_growth(parent.config, {"n_layer": 3}))
    assert str(state) == str(before)


@pytest.mark.parametrize("make", [adamw, muon])
def test_an_optimizer_that_has_not_stepped_grows_into_one_that_has_not(make):
    parent = build(config_of("gpt2"))
    grown = grow_optimizer_state(make(parent).state_dict(), plan_growth(parent.config, {"n_layer": 3}))
    assert grown["state"] == {}
    assert sum(len(group["params"]) for group in grown["param_groups"]) == 2 + 3 * 12 + 2


def test_a_state_of_another_model_or_optimizer_is_refused():
    parent = build(config_of("gpt2"))
    plan = plan_growth(parent.config, {"n_layer": 3})
    single = torch.optim.AdamW(parent.parameters())
    with pytest.raises(ValueError, match=r"the optimizer's groups hold \[28\] parameters, Trainer's .* \[10, 18\]"):
        grow_optimizer_state(single.state_dict(), plan)
    momentum = torch.optim.SGD(adamw(parent).param_groups, lr=0.1, momentum=0.9)
    train(parent, momentum, 1)
    with pytest.raises(ValueError, match=r"keeps momentum_buffer; only the state of Adam, AdamW and Muon can grow"):
        grow_optimizer_state(momentum.state_dict(), plan)
    mixed = muon(parent)
    train(parent, mixed, 1)
    state = mixed.state_dict()
    state["state"][0]["momentum_buffer"] = state["state"][0].pop("exp_avg")
    with pytest.raises(ValueError, match=r"keeps momentum_buffer; only the state"):
        grow_optimizer_state(state, plan)


class Payload:
    """Something that runs code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


def test_a_file_is_read_without_running_its_code(tmp_path):
    torch.save({"state": {}, "param_groups": [], "more": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil.pt: not a readable optimizer state") as raised:
        read_optimizer_state(tmp_path / "evil.pt")
    assert str(raised.value).isprintable()  # torch writes in bold how to run the code all the same


def test_files_that_hold_no_optimizer_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.pt: no such file"):
        read_optimizer_state(tmp_path / "absent.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"weights.pt: has no 'state' and 'param_groups'"):
        read_optimizer_state(tmp_path / "weights.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "weights.pt").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut.pt: not a readable optimizer state"):
        read_optimizer_state(tmp_path / "cut.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"old.pt: not a readable optimizer state"):
        read_optimizer_state(tmp_path / "old.pt")
