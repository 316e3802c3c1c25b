"""Growth on disk, for every family: streamed in float32, verified, loaded by the stock class."""

import pytest
import torch
from growth_checkpoints import save
from growth_models import TIED_OR_NOT, build, config_of, fields_of, relative_difference, tokens_for
from transformers import AutoModelForCausalLM

from hf_progressive.growth import grow_checkpoint, new_entry_masks
from hf_progressive.storage import read_json

TILED = {"width": 32, "heads": 4, "kv_heads": 4, "mlp": 48, "layers": 4}
ANY = {"width": 24, "heads": 3, "kv_heads": 3, "mlp": 31, "layers": 3}
KEPT, CHANGED = True, False
GROWTHS = [
    ("exact", {"free_scale": 1.0, "new_layers": "fresh"}, ANY, KEPT),
    ("exact", {"new_scale": 1.0}, ANY, CHANGED),
    ("tile", {"uneven": 0.8, "noise": 0.2}, TILED, KEPT),
    ("split", {"uneven": 0.8, "depth_method": "llama_pro"}, ANY, KEPT),
    ("split", {"depth_method": "stack"}, TILED, CHANGED),
    ("llama_pro", {}, ANY, KEPT),
    ("solar", {}, ANY, CHANGED),
    ("shrink_pad_perturb", {"shrink": 0.8}, ANY, CHANGED),
]


@pytest.mark.parametrize(
    ("model_type", "tied"),
    TIED_OR_NOT,
)
def test_every_way_to_grow_is_streamed_verified_and_loaded(tmp_path, model_type, tied):
    parent = build(config_of(model_type, tie_word_embeddings=tied), dtype=torch.float32)
    parent.config.architectures = [type(parent).__name__]
    save(parent, tmp_path / "parent")
    for method, options, sizes, kept in GROWTHS:
        folder, target = tmp_path / "child", fields_of(model_type, **sizes)
        report = grow_checkpoint(tmp_path / "parent", folder, target, method=method, overwrite=True, **options)
        assert report.preserves_function == report.verification.preserved == kept, (method, options)
        assert bool(report.changes) != kept
        assert read_json(folder / "growth.json")["plan"]["changes"] == list(report.changes)
        child = AutoModelForCausalLM.from_pretrained(folder)
        assert (relative_difference(parent, child, tokens_for(parent.config)) < 1e-4) == kept, (method, options)
        masks = new_entry_masks(folder)
        assert {name: mask.shape for name, mask in masks.items()} == {n: p.shape for n, p in child.named_parameters()}
