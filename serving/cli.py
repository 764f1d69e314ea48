"""`amlr-serve`: load a bundle, prove it, serve it."""

import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from amlr.cli_support import AmlrCommand
from amlr.errors import InputError
from amlr.runtime import Engine
from amlr.runtime.cli_options import speed_options
from amlr.runtime.cpu import usable_cores
from amlr.serving.settings import (
    BatchSettings,
    QueueSettings,
    RequestLimits,
    ServerSettings,
    UrlSettings,
)

LOG = logging.getLogger("amlr.serving.cli")
_PATH = click.Path(path_type=Path)
EXAMPLES = """\b
Examples:
  amlr-serve --engine amlr.plan
  amlr-serve --engine amlr.plan --precision escalate --answer-cache 10000
  amlr-serve --engine amlr.plan --host 0.0.0.0 --port 8080 --api-key-file keys.txt
  curl -s localhost:8000/v1/tag -F text="Kevin Love at Quicken Loans Arena" -F image=@photo.jpg
"""
_LIMITS, _BATCH, _QUEUE = RequestLimits(), BatchSettings(), QueueSettings()


@click.command("serve", cls=AmlrCommand, epilog=EXAMPLES)
@click.option("--engine", "bundle", type=_PATH, required=True, help="Folder of the bundle.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 for all networks.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--uds", type=_PATH, help="Serve on this Unix socket instead of host and port.")
@click.option("--provider", default="auto", show_default=True, help="auto, onnxruntime, ...")
@speed_options
@click.option("--workers", type=click.IntRange(1), help="Engine calls at a time; default: cores.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of a call; default: 1.")
@click.option("--image-cache-mb", type=float, default=256, show_default=True)
@click.option("--cache-dir", type=_PATH, help="Where a provider may keep compiled forms.")
@click.option("--manifest-sha256", help="Refuse a bundle whose manifest has another hash.")
@click.option("--wait-ms", type=float, default=1000 * _BATCH.max_wait_s, show_default=True)
@click.option("--batch-posts", type=int, default=_BATCH.max_posts, show_default=True)
@click.option("--batch-tokens", type=int, default=_BATCH.max_tokens, show_default=True)
@click.option("--deadline-ms", type=int, default=int(1000 * _QUEUE.deadline_s), show_default=True)
@click.option("--queue-posts", type=int, default=_QUEUE.max_posts, show_default=True)
@click.option("--queue-mb", type=float, default=_QUEUE.max_bytes / 1e6, show_default=True)
@click.option("--max-posts", type=int, default=_LIMITS.max_posts, show_default=True)
@click.option("--max-body-mb", type=float, default=_LIMITS.max_body_bytes / 1e6, show_default=True)
@click.option("--max-chars", type=int, default=_LIMITS.max_text_chars, show_default=True)
@click.option("--api-key-file", type=_PATH, help="File of accepted keys, one a line.")
@click.option("--allow-url", multiple=True, help="Host that pictures may be fetched from.")
@click.option("--drain-s", type=float, default=0.0, show_default=True, help="Unready, still open.")
@click.option("--shutdown-s", type=float, default=30.0, show_default=True)
@click.option("--page/--no-page", default=True, show_default=True, help="The page at /.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning"]), default="info")
@click.option("--log-texts", is_flag=True, help="Put the texts of posts into the log.")
def serve_command(**options: Any) -> None:
    """Serve a bundle over HTTP: /v1/tag, the Open Inference Protocol, metrics and a page.

    Keys may also come from the environment variable AMLR_API_KEYS (separated by commas). The log
    goes to stderr as JSON lines. SIGTERM finishes accepted requests and exits with 0.
    """
    settings = _settings(options)
    _require_packages()
    from amlr.serving.logs import configure

    configure(options["log_level"])
    engine = Engine.load(
        options["bundle"],
        provider=options["provider"],
        precision=options["precision"],
        threads=options["threads"] or 1,
        image_cache_mb=options["image_cache_mb"],
        cache_dir=options["cache_dir"],
        manifest_sha256=options["manifest_sha256"],
        answer_cache=options["answer_cache"],
        image=options["image_mode"],
    )
    for skipped in engine.skipped:
        LOG.info("tier passed over", extra={"tier": skipped.provider, "reason": skipped.reason})
    LOG.info(
        "engine loaded",
        extra={
            "model": engine.manifest.name,
            "provider": engine.provider,
            "precision": engine.precision,
            "reason": engine.choice.reason,
            "manifest_sha256": engine.bundle.manifest_sha256,
        },
    )
    sys.exit(_serve(engine, settings, options))


def _serve(engine: Engine, settings: ServerSettings, options: dict[str, Any]) -> int:
    from amlr.serving.app import create_app
    from amlr.serving.server import Server, keep_turns_short

    app = create_app(engine, settings)
    place = (
        {"uds": str(options["uds"])}
        if options["uds"]
        else {"host": options["host"], "port": options["port"]}
    )
    server = Server(app, drain_s=options["drain_s"], **place)
    keep_turns_short()
    try:
        server.run()
    # uvicorn says why, in the log, when it cannot bind.
    except SystemExit as error:
        return 2 if error.code else 0
    if app.state.service.finished:
        engine.close()
        return 0
    LOG.error("stopped with work unfinished; raise --shutdown-s")
    # Threads are still inside the engine: an ordinary end would pull the interpreter from under it.
    sys.stderr.flush()
    os._exit(1)


def _settings(options: dict[str, Any]) -> ServerSettings:
    # Text of posts beside pictures in base64, which are a third larger than their files.
    body_bytes = int(1e6 * options["max_body_mb"])
    return ServerSettings(
        limits=replace(
            _LIMITS,
            max_body_bytes=body_bytes,
            max_posts=options["max_posts"],
            max_text_chars=options["max_chars"],
        ),
        batch=replace(
            _BATCH,
            workers=options["workers"] or usable_cores(),
            max_wait_s=options["wait_ms"] / 1000,
            max_posts=options["batch_posts"],
            max_tokens=options["batch_tokens"],
        ),
        queue=replace(
            _QUEUE,
            max_posts=options["queue_posts"],
            max_bytes=int(1e6 * options["queue_mb"]),
            deadline_s=options["deadline_ms"] / 1000,
        ),
        urls=UrlSettings(allow=tuple(options["allow_url"])),
        api_keys=_keys(options["api_key_file"]),
        log_texts=options["log_texts"],
        page=options["page"],
        shutdown_s=options["shutdown_s"],
    )


def _keys(path: Path | None) -> tuple[str, ...]:
    found = os.environ.get("AMLR_API_KEYS", "").split(",")
    if path is not None:
        try:
            found += path.read_text().splitlines()
        except OSError as error:
            raise InputError(f"cannot read the key file {path}: {error.strerror}") from error
    keys = tuple(key.strip() for key in found if key.strip())
    if path is not None and not keys:
        raise InputError(f"the key file {path} holds no key; write one key a line")
    return keys


def _require_packages() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(
            f'amlr-serve needs {error.name!r}; install it with: pip install "amlr[serve]"'
        ) from error


def main() -> None:
    """Entry point of `amlr-serve`."""
    # Before uvicorn's own handlers: SIGTERM while loading is an ordinary end as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    serve_command()
