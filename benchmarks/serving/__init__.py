"""Load tests of the server: throughput beside others, overload, faults, fuzzing.

Each is a program (`python -m amlr.benchmarks.serving.throughput --help`) that prints a table and
writes JSON. Everything stays on the loopback interface.
"""
