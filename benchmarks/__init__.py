"""Room amlr.benchmarks."""
