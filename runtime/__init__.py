"""Room amlr.runtime."""
