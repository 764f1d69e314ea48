"""What an NVIDIA GPU is measured with, in minutes and without a network.

A kit is filled at home (`python -m amlr.benchmarks.gpu.kit`); on the GPU machine one command runs
every step in a process of its own and appends what it finds to one file
(`python -m amlr.benchmarks.gpu`).
"""
