"""Room amlr.kernels."""
