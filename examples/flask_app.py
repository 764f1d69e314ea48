"""A Flask application with the engine inside: no second service.

    pip install flask "amlr[serve]"
    AMLR_PLAN=amlr.plan flask --app examples/flask_app.py run

Requests of Flask's threads meet in the batches of `TaggingService`, the part of `amlr-serve` that
knows nothing of HTTP. Load the engine in the process that uses it: with a forking server such as
gunicorn leave `preload_app` off.
"""

import atexit
import os
from typing import Any

from flask import Flask, jsonify, request

from amlr.runtime import Engine, Post
from amlr.serving.jobs import RefusedError
from amlr.serving.service import TaggingService

app = Flask(__name__)
service = TaggingService(Engine.load(os.environ["AMLR_PLAN"], threads=1))
service.start()
atexit.register(service.stop)


@app.post("/entities")
def entities() -> Any:
    """Form field `text`, file `image` if there is one."""
    file = request.files.get("image")
    post = Post(request.form["text"], file.read() if file else None)
    try:
        (job,) = service.submit([post], deadline_s=2.0)
        answer = job.future.result()
    except RefusedError as error:
        return jsonify(error=str(error)), 503, {"Retry-After": str(1 + int(error.retry_after_s))}
    return jsonify(answer.result.to_dict())
