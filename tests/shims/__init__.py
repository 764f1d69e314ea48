"""Test doubles: kernels on the host, and a CUDA driver without a GPU. Never shipped."""
