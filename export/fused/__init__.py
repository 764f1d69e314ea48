"""Graphs with onnxruntime's fused operators, for its CUDA provider, from a bundle's fp32 graphs."""
