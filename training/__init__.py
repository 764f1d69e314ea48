"""Room amlr.training."""
