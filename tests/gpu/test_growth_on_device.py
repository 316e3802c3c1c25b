"""Growth in float32 on the device: every family's stock class computes what its parent computes."""

import pytest
import torch
from growth.growth_models import NORMED_OVER_ALL, build, config_of, fields_of, grow, relative_difference, tokens_for

from hf_progressive.growth.families import FAMILIES
from hf_progressive.growth.verify import verify_growth

PARENT = {"width": 128, "layers": 3, "heads": 4, "kv_heads": 4, "head_dim": 32, "mlp": 256, "vocab": 515}
LARGER = PARENT | {"width": 192, "layers": 5, "heads": 6, "kv_heads": 6, "mlp": 416, "vocab": 640}
CONTEXT = 128
OPTIONS = {"granite": {"attention_multiplier": PARENT["head_dim"] ** -0.5}}  # its default of 1 amplifies rounding
LARGEST_DIFFERENCE = 1e-5  # of the logit scale


@pytest.mark.parametrize("axis", ["depth", "all"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_grown_model_computes_what_its_parent_computes(model_type, axis, device, record_property):
    tied = model_type != "nanochat"  # a wider tied NanoChat is refused
    config = config_of(
        model_type, **PARENT, positions=CONTEXT, tie_word_embeddings=tied, **OPTIONS.get(model_type, {})
    )
    parent = build(config, dtype=torch.float32)
    target = LARGER if axis == "all" else PARENT | {"layers": LARGER["layers"]}
    if axis == "all" and model_type in NORMED_OVER_ALL:
        target = target | {"width": 256, "heads": 8, "kv_heads": PARENT["kv_heads"]}
    child, plan = grow(parent, fields_of(model_type, **target, positions=CONTEXT))
    assert plan.preserves_function
    parent, child = parent.to(device), child.to(device)

    found = relative_difference(parent, child, tokens_for(config, batch=4, length=CONTEXT).to(device))
    record_property("relative_difference", found)
    assert found <= LARGEST_DIFFERENCE

    check = verify_growth(parent, child, sequences=2)
    record_property("verified_difference", check.max_abs_logit_diff / check.max_abs_logit)
    assert check.preserved
    assert check.max_abs_logit_diff <= LARGEST_DIFFERENCE * check.max_abs_logit


def test_the_device_computes_what_the_cpu_computes_in_float64(device, record_property):
    config = config_of("llama", **PARENT, positions=CONTEXT)
    exact = build(config, dtype=torch.float64)
    tokens = tokens_for(config, batch=2, length=CONTEXT)
    with torch.no_grad():
        expected = exact(tokens).logits
        found = build(config, dtype=torch.float32).to(device)(tokens.to(device)).logits.double().cpu()
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    record_property("relative_difference", difference)
    assert difference <= 1e-5
