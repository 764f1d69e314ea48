"""Room amlr.export."""
