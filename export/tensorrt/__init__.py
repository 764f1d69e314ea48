"""Engines of TensorRT and TensorRT-RTX: profiles, one builder, the network's precision audit."""
