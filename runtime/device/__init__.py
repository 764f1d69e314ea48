"""Serving on an NVIDIA device: one session, whichever library runs the graphs.

`provider` is the door, `session` one caller's stream with its memory and captured shapes,
`decoding` the decoders behind the engines; `tensorrt` and `onnxruntime` run the graphs.
"""
