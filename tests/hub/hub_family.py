"""A finished run of three small rungs, as a ladder leaves it: real growth, but training replaced by noise.

The numbers in the records are invented, with the right relations between them; weights, tokenizer and growth are real.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hf_progressive import grow_checkpoint
from hf_progressive.storage import read_json, write_json, write_manifest

CONTEXT, VOCABULARY = 32, 300
SIZES = {
    "d4": {"n_layer": 4, "n_embd": 32, "n_head": 2},
    "d5": {"n_layer": 5, "n_embd": 32, "n_head": 2},
    "d6": {"n_layer": 6, "n_embd": 48, "n_head": 3},
}
NAMES = list(SIZES)


def write_run(run_dir: Path, *, title: str = "tiny", max_shard_size: str = "5GB") -> Path:
    """Write a complete run: d4 from scratch, d5 and d6 grown, d5 with a baseline that it matched."""
    records: list[dict[str, Any]] = []
    for index, name in enumerate(NAMES):
        init, final = run_dir / name / "init", run_dir / name / "final"
        growth = None
        if index == 0:
            _write_fresh(init, SIZES[name])
        else:
            grow_checkpoint(run_dir / NAMES[index - 1] / "final", init, SIZES[name], seed=index)
            growth = read_json(init / "growth.json")
        model = _train(GPT2LMHeadModel.from_pretrained(init), seed=index)
        model.save_pretrained(final, max_shard_size=max_shard_size)
        _tokenizer().save_pretrained(final)
        _write_estimates(model, final / "phi")
        (final / "LICENSE").write_text("a licence")
        (final / "training_args.bin").write_bytes(b"not for publication")
        (final / "optimizer.pt").write_bytes(b"not for publication")
        records.append(rung_record(index, model, growth, records[-1] if records else None))
        write_json(final / "rung.json", records[-1])
        write_manifest(final)
    config = {"name": title, "cold": ["d5"], "data": {"source": "stdlib", "name": None, "revision": None}}
    ladder = {"format": 1, "name": title, "family": "gpt2", "seed": 0, "rungs": NAMES, "finished": NAMES}
    write_json(run_dir / "ladder.json", ladder | {"complete": True, "config": config, "environment": {}})
    return run_dir


def change_record(final: Path, **changes: Any) -> None:
    """Replace entries of a rung's record and bring its manifest up to date."""
    write_json(final / "rung.json", read_json(final / "rung.json") | changes)
    write_manifest(final)


def _write_fresh(folder: Path, size: dict[str, int]) -> None:
    torch.manual_seed(0)
    config = GPT2Config(**size, n_positions=CONTEXT, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    trained = ByteLevelBPETokenizer()
    text = [f"def function_{n}(self):\n    return self.value_{n}\n" for n in range(40)]
    trained.train_from_iterator(text, vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>")


def _train(model: GPT2LMHeadModel, seed: int) -> GPT2LMHeadModel:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def _write_estimates(model: GPT2LMHeadModel, folder: Path) -> None:
    folder.mkdir()
    parameters = dict(model.named_parameters())
    save_file({name: value.detach().square() for name, value in parameters.items()}, folder / "fisher.safetensors")
    matrices = {name: value.detach() for name, value in parameters.items() if value.ndim == 2 and "h." in name}
    bases = {name: torch.linalg.qr(value.T[:, :4])[0].contiguous() for name, value in matrices.items()}
    save_file(bases, folder / "subspace.safetensors")


def rung_record(
    index: int, model: GPT2LMHeadModel, growth: dict[str, Any] | None, parent: dict[str, Any] | None
) -> dict[str, Any]:
    parameters = model.num_parameters()
    tokens = int(6.2 * parameters) if parent is None else int(4.1 * parameters)
    cold_tokens, per_token = int(6.2 * parameters), 6.3 * parameters
    fisher, subspace = (0.0, 0.0) if parent is None else (0.013 * per_token * tokens, 0.0021 * per_token * tokens)
    bits = 2.9137 - 0.1219 * index
    record = {
        "format": 1,
        "index": index,
        "name": NAMES[index],
        "parent": None if parent is None else parent["name"],
        "family": "gpt2",
        "config": json.loads(model.config.to_json_string(use_diff=False)),
        "parameters": {"total": parameters, "non_embedding": parameters - 9_600, "scaling": parameters},
        "tokens": tokens,
        "cold_tokens": cold_tokens,
        "tokens_per_parameter": tokens / parameters,
        "data": {
            "first_block": 1000 * index,
            "blocks": tokens // CONTEXT,
            "block_tokens": CONTEXT,
            "corpus_blocks": 40_123,
            "first_epoch": 0,
            "last_epoch": 0,
            "repeats_from_token": None,
            "fingerprint": "9c1f0b7a",
            "source": "stdlib",
        },
        "flops": {
            "per_token": per_token,
            "train": per_token * tokens,
            "fisher": fisher,
            "subspace": subspace,
            "inherited": 0.0 if parent is None else sum(parent["flops"].values()) - parent["flops"]["per_token"],
        },
        "bits_per_byte": bits,
        "loss": 0.9 * bits,
        "curve": _curve(bits, fisher + subspace, per_token, tokens, grown=parent is not None),
        "training_log": [{"step": 1, "loss": 5.0, "learning_rate": 1e-3}],
        "cold": None,
        "flops_to_match": None,
        "gap_bits_per_byte": None,
        "saving": None,
        "eta": None,
        "c_parent_over_c_cold": None,
        "cold_flops": per_token * cold_tokens,
        "max_abs_logit_diff": None,
        "max_abs_logit": None,
        "growth": growth,
        "estimates": {},
        "phi": None,
        "seconds": {"grow": 0.4, "train": 12.3},
        "environment": {"hf_progressive": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    }
    if parent is None or growth is None:
        return record
    record["max_abs_logit_diff"] = growth["verification"]["max_abs_logit_diff"]
    record["max_abs_logit"] = growth["verification"]["max_abs_logit"]
    record["c_parent_over_c_cold"] = parent["cold_flops"] / record["cold_flops"]
    record["training_log"] = [
        {"step": step, "loss": 3.0, "phi/ewc": 0.1 / step, "phi/grad_ratio": (step > 1) * 3.1 / step}
        for step in (1, 10, 20)
    ]
    record["phi"] = {
        "ewc_lambda": 0.25,
        "gamma": 0.001,
        "schedule": "linear",
        "until": 0.5,
        "fisher": {"kind": "empirical", "sequences": 128, "tokens": 128 * CONTEXT, "flops": fisher},
        "subspace": {"source": "weights", "energy": 0.95, "sequences": 0, "tokens": 0, "flops": subspace},
    }
    if NAMES[index] == "d5":
        record |= _match(record)
    return record


def _curve(bits: float, before: float, per_token: float, tokens: int, *, grown: bool) -> list[dict[str, Any]]:
    start = 0.4 if grown else 3.1
    return [
        {
            "step": 5 * n,
            "tokens": tokens * n // 8,
            "flops": before + per_token * tokens * n / 8,
            "loss": 0.9 * bits * (1 + start * (1 - n / 8) ** 3),
            "bits_per_byte": bits * (1 + start * (1 - n / 8) ** 3),
            "learning_rate": 1e-3,
        }
        for n in range(9)
    ]


def _match(record: dict[str, Any]) -> dict[str, Any]:
    flops, bits = record["cold_flops"], record["bits_per_byte"] + 0.0213
    curve = _curve(bits, 0.0, record["flops"]["per_token"], record["cold_tokens"], grown=False)
    match = 0.47 * flops
    return {
        "cold": {"bits_per_byte": bits, "loss": 0.9 * bits, "flops": flops, "tokens": record["cold_tokens"]}
        | {"curve": curve, "seconds": 20.0},
        "flops_to_match": match,
        "gap_bits_per_byte": record["bits_per_byte"] - bits,
        "saving": 1 - match / flops,
        "eta": (flops - match) / record["flops"]["inherited"],
    }


def assert_same_tensors(one: Path, other: Path) -> None:
    """Compare two safetensors files tensor by tensor, bit by bit."""
    expected, actual = load_file(one), load_file(other)
    assert expected.keys() == actual.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, actual[name]), name
