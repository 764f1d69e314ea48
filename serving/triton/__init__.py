"""Triton Inference Server: a model repository made from a bundle, and the models it runs.

`amlr.serving.triton.repository` writes it; `model` and `ensemble_models` run inside the server's
python backend, whose module `triton_python_backend_utils` exists nowhere else. Nothing here needs
FastAPI or a Triton client.
"""
