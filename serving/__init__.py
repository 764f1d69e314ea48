"""Room amlr.serving."""
