"""The rung loop: grow, verify, train, measure, record."""

from hf_progressive.ladder.rung_loop import RungResult, run_ladder

__all__ = ["RungResult", "run_ladder"]
