"""Doubles of a driver and an engine library: they prove our plumbing, nothing of theirs."""
