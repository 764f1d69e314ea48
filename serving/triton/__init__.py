"""Triton Inference Server: a model repository made from a bundle, and the model it runs.

`amlr.serving.triton.repository` writes it; `amlr.serving.triton.model` runs inside the server's
python backend, whose module `triton_python_backend_utils` exists nowhere else. Nothing here needs
a web server or a Triton client.
"""
