"""Doubles of a driver and an engine library: they test amlr's code, not those."""
