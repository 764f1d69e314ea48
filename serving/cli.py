"""`amlr-serve`: load a bundle, check it, serve it."""

import ipaddress
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from amlr.cli_support import AmlrCommand
from amlr.errors import InputError
from amlr.extras import require_extra
from amlr.runtime import Engine
from amlr.runtime.cli_options import engine_options, shared_options
from amlr.runtime.cpu import usable_cores
from amlr.serving.settings import (
    MAX_DEADLINE_MS,
    BatchSettings,
    QueueSettings,
    RequestLimits,
    ServerSettings,
    UrlSettings,
    environment_keys,
    stripped_keys,
)

LOG = logging.getLogger("amlr.serving.cli")
_PATH = click.Path(path_type=Path)


# A day, and a terabyte: more than that is a slip, and what the system's timers cannot hold.
_SECONDS, _MILLISECONDS = click.FloatRange(0, 86_400), click.FloatRange(0, 86_400_000)
_MEGABYTES = click.FloatRange(0, 1_000_000)
_COUNT, _DEADLINE = click.IntRange(0, 1_000_000_000), click.IntRange(1, MAX_DEADLINE_MS)
EXAMPLES = """\b
Examples:
  amlr-serve --engine amlr.plan
  amlr-serve --engine amlr.plan --precision escalate --answer-cache 10000
  amlr-serve --engine amlr.plan --host 0.0.0.0 --port 8080 --api-key-file keys.txt
  curl -s localhost:8000/v1/tag -F text="Kevin Love at Quicken Loans Arena" -F image=@photo.jpg
"""
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_LIMITS, _BATCH, _QUEUE = RequestLimits(), BatchSettings(), QueueSettings()
Command = Callable[..., None]


def _shown(
    name: str, kind: click.IntRange | click.FloatRange, default: float, text: str
) -> Callable[[Command], Command]:
    """An option whose help shows its default."""
    return click.option(name, type=kind, default=default, show_default=True, help=text)


@click.command("serve", cls=AmlrCommand, epilog=EXAMPLES)
@click.option("--engine", "bundle", type=_PATH, required=True, help="Folder of the bundle.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: all interfaces.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--uds", type=_PATH, help="Serve on this Unix socket instead of host and port.")
@shared_options
@click.option("--workers", type=click.IntRange(1), help="Parallel engine calls; default: cores.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of a call; default: 1.")
@click.option("--image-cache-mb", type=_MEGABYTES, default=256, show_default=True)
@_shown("--wait-ms", _MILLISECONDS, 1000 * _BATCH.max_wait_s, "Longest wait for a fuller batch.")
@_shown("--batch-posts", _COUNT, _BATCH.max_posts, "Most posts in a batch.")
@_shown("--batch-tokens", _COUNT, _BATCH.max_tokens, "Most tokens in a batch, estimated.")
@_shown("--deadline-ms", _DEADLINE, int(1000 * _QUEUE.deadline_s), "Of requests that name none.")
@_shown("--queue-posts", _COUNT, _QUEUE.max_posts, "Most waiting posts.")
@_shown("--queue-mb", _MEGABYTES, _QUEUE.max_bytes / 1e6, "Most waiting bytes.")
@_shown("--max-posts", _COUNT, _LIMITS.max_posts, "Most posts in a request.")
@_shown("--max-body-mb", _MEGABYTES, _LIMITS.max_body_bytes / 1e6, "Largest request body.")
@_shown("--max-chars", _COUNT, _LIMITS.max_text_chars, "Longest text of a post.")
@click.option("--api-key-file", type=_PATH, help="File of accepted keys, one a line.")
@click.option(
    "--cors-origin",
    multiple=True,
    help="Origin whose web pages may send requests, e.g. https://example.org, or *; repeatable.",
)
@click.option("--root-path", help="Path prefix of a reverse proxy, e.g. /ner.")
@click.option("--allow-url", multiple=True, help="Host that pictures may be fetched from.")
@_shown("--drain-s", _SECONDS, 0.0, "Time to report unready and still serve, before stopping.")
@_shown("--shutdown-s", _SECONDS, 30.0, "Longest time to finish accepted requests.")
@click.option("--page/--no-page", default=True, show_default=True, help="Serve the web page at /.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning"]), default="info")
@click.option("--log-texts", is_flag=True, help="Write the texts of posts to the log.")
def serve_command(**options: Any) -> None:
    """Serve a bundle over HTTP: /v1/tag, the Open Inference Protocol, metrics and a web page.

    Keys may also come from the environment variable AMLR_API_KEYS (separated by commas). The log
    goes to stderr as JSON lines. SIGTERM finishes accepted requests and exits with 0.
    """
    require_extra(
        "amlr-serve", "serve", "starlette", "prometheus_client", "python_multipart", "uvicorn"
    )
    place = _place(options)
    settings = _settings(options)
    opening = replace(engine_options(options), threads=options["threads"] or 1)
    from amlr.serving.logs import configure

    configure(options["log_level"])
    _warn_if_open(settings, options)
    engine = Engine.load(
        options["bundle"], manifest_sha256=options["manifest_sha256"], **asdict(opening)
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
    sys.exit(_serve(engine, settings, place, options["drain_s"]))


def _serve(engine: Engine, settings: ServerSettings, place: dict[str, Any], drain_s: float) -> int:
    from amlr.serving.app import create_app
    from amlr.serving.server import Server, keep_turns_short

    app = create_app(engine, settings)
    server = Server(app, drain_s=drain_s, **place)
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


def _place(options: dict[str, Any]) -> dict[str, Any]:
    """The address for uvicorn, checked before the bundle is loaded."""
    prefix = options["root_path"] or ""
    if prefix and not _PREFIX.fullmatch(prefix):
        raise InputError(
            f"--root-path must look like /ner, with a slash only before each part, got {prefix!r}"
        )
    if options["uds"] is not None:
        _check_socket(options["uds"])
        return {"uds": str(options["uds"]), "root_path": prefix}
    host, port = options["host"], options["port"]
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # Names that are none are UnicodeErrors.
    except (OSError, ValueError) as error:
        raise InputError(f"--host {host!r} is no address of this machine: {error}") from error
    return {"host": host, "port": port, "root_path": prefix}


def _check_socket(path: Path) -> None:
    """Whether a socket can be made here."""
    try:
        if path.exists():
            if not path.is_socket():
                raise InputError(f"--uds {path} exists and is no socket; choose another path")
            return
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(path))
        path.unlink()
    # An embedded NUL is a ValueError.
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"--uds {path}: no socket can be made here ({reason}); choose a short path in an "
            "existing folder that you may write to"
        ) from error


def _warn_if_open(settings: ServerSettings, options: dict[str, Any]) -> None:
    """Nobody should serve the whole network without a key unawares."""
    if settings.api_keys:
        return
    if "AMLR_API_KEYS" in os.environ:
        LOG.warning("AMLR_API_KEYS is set but holds no key, so no key is asked for")
    if options["uds"] is None and not _is_loopback(options["host"]):
        LOG.warning(
            "no key protects %s: whoever reaches it may use it; "
            "set AMLR_API_KEYS or --api-key-file, or let a proxy ask for keys",
            options["host"] or "all networks",
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:  # a name: who knows where it leads
        return False


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
        cors_origins=tuple(options["cors_origin"]),
        log_texts=options["log_texts"],
        page=options["page"],
        shutdown_s=options["shutdown_s"],
    )


def _keys(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return environment_keys()
    try:
        # Editors on Windows begin files with a byte order mark.
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"cannot read the key file {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(
            f"the key file {path} is not UTF-8 ({error}); save it as UTF-8, one key a line"
        ) from error
    keys = environment_keys() + stripped_keys(lines)
    if not keys:
        raise InputError(f"the key file {path} holds no key; write one key a line")
    return keys


def main() -> None:
    """Entry point of `amlr-serve`."""
    # Before uvicorn's own handlers: SIGTERM while loading is an ordinary end as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    serve_command()
