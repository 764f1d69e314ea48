"""The server under load, beside the engine called directly and servers of other make.

`python -m amlr.benchmarks.load --help`. Everything stays on the loopback interface.
"""
