"""Broken bodies by the ten thousand: forms, pictures, JSON, tensors. No answer may be a 500."""

import asyncio
import base64
import io
import json
import random
import struct
from pathlib import Path

import click

from amlr.benchmarks.serving.client import Connection, http_post
from amlr.benchmarks.serving.processes import running
from amlr.cli_support import AmlrCommand

_JSON, _FORM = "application/json", "multipart/form-data; boundary=b0undary"
_MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "LA")
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")


def picture(state: random.Random) -> bytes:
    """A picture of a random kind, usually damaged."""
    from PIL import Image

    mode = state.choice(_MODES)
    image = Image.new(mode, (state.randint(1, 60), state.randint(1, 60)))
    buffer = io.BytesIO()
    try:
        image.save(buffer, state.choice(_FORMATS))
    except (OSError, KeyError, ValueError):  # not every format knows every mode
        image.convert("RGB").save(buffer, "PNG")
    return damaged(buffer.getvalue(), state)


def damaged(content: bytes, state: random.Random) -> bytes:
    """Flip, cut, repeat or insert some bytes."""
    data = bytearray(content)
    for _ in range(state.choice((0, 1, 1, 2, 8, 40))):
        if not data:
            break
        at = state.randrange(len(data))
        kind = state.randrange(5)
        if kind == 0:
            data[at] = state.randrange(256)
        elif kind == 1:
            del data[at : at + state.randint(1, 20)]
        elif kind == 2:
            data[at:at] = data[max(0, at - 20) : at]
        elif kind == 3:
            data[at:at] = state.randbytes(state.randint(1, 8))
        else:
            data[at] ^= 1 << state.randrange(8)
    return bytes(data)


def form(state: random.Random) -> tuple[str, str, bytes]:
    """A multipart form, often with broken frames."""
    parts = []
    for _ in range(state.choice((1, 2, 2, 3))):
        name = state.choice(("text", "image", "posts", "words", "deadline_ms", "x", ""))
        value = state.choice(
            (b"Paris in May", picture(state), b'[{"text":"a","image":"image"}]', b"", b"[[0,5]]")
        )
        file = state.choice((b"", b'; filename="a.png"', b'; filename="../../etc/passwd"'))
        head = b'Content-Disposition: form-data; name="%s"%s' % (name.encode(), file)
        parts.append(b"--b0undary\r\n" + head + b"\r\n\r\n" + value + b"\r\n")
    body = b"".join(parts) + state.choice((b"--b0undary--\r\n", b"", b"--b0undary"))
    if state.random() < 0.5:
        body = damaged(body, state)
    return state.choice(("/v1/tag", "/v1/explain")), _FORM, body


def good_form(state: random.Random) -> tuple[str, str, bytes]:
    """A right form around a picture that is not."""
    body = (
        b'--b0undary\r\nContent-Disposition: form-data; name="text"\r\n\r\nParis in May\r\n'
        b'--b0undary\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        + picture(state)
        + b"\r\n--b0undary--\r\n"
    )
    return "/v1/tag", _FORM, body


def value(state: random.Random, depth: int = 0) -> object:
    """Some JSON value."""
    kind = state.randrange(9 if depth < 3 else 6)
    if kind == 0:
        return state.choice((None, True, False))
    if kind == 1:
        return state.choice((0, -1, 3, 2**63, 10**400, 0.5, -1e308))
    if kind < 5:
        characters = "aé😀\u202e\0\ud800 \n#@/"
        return "".join(state.choice(characters) for _ in range(state.randint(0, 30)))
    if kind == 5:
        return base64.b64encode(picture(state)).decode()
    if kind == 6:
        return [value(state, depth + 1) for _ in range(state.randint(0, 4))]
    names = ("text", "image", "words", "id", "posts", "deadline_ms", "image_url")
    return {state.choice(names): value(state, depth + 1) for _ in range(state.randint(0, 4))}


def body(state: random.Random) -> tuple[str, str, bytes]:
    """A JSON body, often of the right outer form."""
    content = value(state)
    if state.random() < 0.7:
        content = {"text": value(state), "image": value(state)}
    if state.random() < 0.3:
        content = {"posts": [content, {"text": "Paris"}]}
    text = json.dumps(content).encode()
    if state.random() < 0.3:
        text = damaged(text, state)
    path = state.choice(("/v1/tag", "/v1/tag", "/v1/explain", "/v1/tag/stream"))
    return path, "application/x-ndjson" if path.endswith("stream") else _JSON, text


def tensors(model: str, state: random.Random) -> tuple[str, str, bytes]:
    """An Open Inference request in JSON form, damaged in one place."""
    one: dict[str, object] = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["Paris"]}
    image = base64.b64encode(picture(state)).decode()
    two: dict[str, object] = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [image]}
    target = state.choice((one, two))
    target[state.choice(("name", "shape", "datatype", "data", "parameters"))] = value(state)
    inputs = state.choice(([one], [one, two], [two], value(state)))
    return f"/v2/models/{model}/infer", _JSON, json.dumps({"inputs": inputs}).encode()


def binary(model: str, state: random.Random) -> tuple[str, str, bytes]:
    """An Open Inference request in binary form, damaged; the header's length goes into the type."""
    data = struct.pack("<I", 5) + b"Paris"
    two = picture(state)
    data2 = struct.pack("<I", len(two)) + two
    inputs = [
        {"name": n, "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
        for n, size in (("text", len(data)), ("image", len(data2)))
    ]
    head = json.dumps({"inputs": inputs}).encode()
    length = len(head) + state.choice((0, 0, 0, 1, -1, 10**6))
    extra = f"application/octet-stream\r\nInference-Header-Content-Length: {length}"
    rest = damaged(data + data2, state) if state.random() < 0.7 else data + data2
    return f"/v2/models/{model}/infer", extra, head + rest


def make(model: str, state: random.Random) -> bytes:
    """Any one of these."""
    kind = state.randrange(6)
    if kind == 0:
        return http_post(*form(state))
    if kind < 3:
        return http_post(*good_form(state))
    if kind == 3:
        return http_post(*body(state))
    return http_post(*(tensors if kind == 4 else binary)(model, state))


async def fuzz(port: int, model: str, count: int, seed: int, clients: int = 8) -> dict[str, int]:
    """Send `count` inputs; returns how often each status came."""
    state = random.Random(seed)
    seen: dict[str, int] = {}
    bad: list[bytes] = []
    turn = iter(range(count))

    async def client() -> None:
        connection = Connection(port)
        for _ in turn:
            content = make(model, state)
            status, _answer = await connection.ask(content)
            # A stream has no length, so the lean client cannot read its answer.
            is_stream = b"/v1/tag/stream" in content[:40]
            key = "stream" if is_stream and status == 0 else str(status)
            seen[key] = seen.get(key, 0) + 1
            if key.startswith("5") and status != 503:
                bad.append(content)
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    for content in bad[:3]:
        click.echo(repr(content[:600]))
    return seen


@click.command(cls=AmlrCommand)
@click.option("--engine", "bundle", type=click.Path(path_type=Path), required=True)
@click.option("--count", default=20_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(bundle: Path, count: int, seed: int) -> None:
    """Fuzz a server; exit 1 where anything but a wanted answer came."""
    from amlr.runtime.bundle import read_manifest

    model = read_manifest(bundle)[0].name
    with running("amlr.serving", ["--engine", str(bundle)]) as server:
        seen = asyncio.run(fuzz(server.port, model, count, seed))
        alive = server.process.poll() is None
    click.echo(json.dumps({"inputs": sum(seen.values()), "statuses": seen, "alive": alive}))
    wanted = {"200", "400", "404", "413", "415", "422", "429", "503", "stream"}
    if not alive or set(seen) - wanted:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
