"""Studies: recipes × seeds × rungs, trained to several budgets each, and the FLOPs that inheritance saves."""
