"""Studies: arms × seeds × rungs, trained to several budgets each, and the FLOPs that inheritance saves."""

from hf_progressive.study.check import InstrumentCheck, check_instrument
from hf_progressive.study.plan import StudyPlan, plan_study
from hf_progressive.study.run import run_study

__all__ = ["InstrumentCheck", "StudyPlan", "check_instrument", "plan_study", "run_study"]
