"""Only new entries take longer steps."""

import runpy
from pathlib import Path

import torch
from torch import nn

SCRIPT = Path(__file__).parents[2] / "examples" / "studies" / "books_screen" / "new_entries.py"


def test_steps_are_stretched_where_an_entry_is_new():
    stretch = runpy.run_path(str(SCRIPT))["StretchUpdates"]
    model = nn.Linear(3, 2)
    is_new = {
        "weight": torch.tensor([[0, 0, 1], [1, 1, 1]], dtype=torch.bool),
        "bias": torch.zeros(2, dtype=torch.bool),
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    callback = stretch(is_new, 3.0)
    model(torch.randn(4, 3)).square().sum().backward()
    callback.on_pre_optimizer_step(None, None, None, model=model)
    optimizer.step()
    stepped = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    callback.on_optimizer_step(None, None, None, model=model)
    for name, parameter in model.named_parameters():
        factor = 1 + 2 * is_new[name].float()
        torch.testing.assert_close(parameter.detach(), before[name] + factor * (stepped[name] - before[name]))
