"""Logs as JSON lines on stderr. Texts of posts are never in them unless switched on."""

import datetime
import json
import logging
import sys
from typing import Any

_encode = json.JSONEncoder(ensure_ascii=False, default=str).encode
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """One JSON object a record: time, level, logger, message, and what `extra` held."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        values: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        values |= {k: v for k, v in vars(record).items() if k not in _STANDARD and v is not None}
        if record.exc_info:
            values["trace"] = self.formatException(record.exc_info)
        return _encode(values)


def configure(level: str = "info") -> None:
    """Send the logs of this package and of uvicorn to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in ("amlr", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
    # It warns of every broken form, which is the client's business.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    # Ours says the same and more.
    logging.getLogger("uvicorn.access").disabled = True
