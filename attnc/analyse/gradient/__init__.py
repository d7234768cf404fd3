"""Reverse mode on plans: what the backward of a spec computes, derived from what its forward computes."""
