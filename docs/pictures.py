"""The README's pictures: `make pictures` draws them from the demo bundle and a committed report.

`docs/figures/page.png` is the page of `amlr-serve` in headless Chromium with a post of the sample
dataset; `docs/figures/speed.svg` shows `docs/measurements/cpu/small.json`, from `amlr-bench`.
"""

import argparse
import base64
import io
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tests"))

from amlr.benchmarks.report.charts import Bar, bar_chart  # noqa: E402
from amlr.benchmarks.report.schema import read_report  # noqa: E402
from amlr.benchmarks.report.tables import join_rows  # noqa: E402
from chromium import Page  # noqa: E402

REPORT = DOCS / "measurements" / "cpu" / "small.json"
TEXT, PICTURE = "everyone at Granite Times is talking about Verona", "dev_0036.jpg"
BATCH, PRECISION, WIDTH = 16, "fp32", 592
WORKLOADS = {"cold": "A new picture with every post", "hit": "Pictures seen before"}
# From the answer's heading to below its picture; times are left out, they are this machine's.
_ANSWER = """(() => {
  const card = document.getElementById("result").getBoundingClientRect();
  const end = document.getElementById("caption").getBoundingClientRect().bottom;
  return { x: card.left + scrollX - 8, y: card.top + scrollY - 8,
           width: card.width + 16, height: end - card.top + 24 };
})()"""
STYLE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#202124}.own-label{font-weight:700}"
    ".own{fill:#3949ab}.peer{fill:#b0b7d6}.note{fill:#5f6368}"
    ".title{font-weight:700}.whisker{stroke:#5f6368;fill:none}</style>"
)


def draw_page(plan: Path, image: Path, out: Path) -> None:
    """Serve a bundle, tag the post on the page, and save what the browser shows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "amlr.serving", "--engine", str(plan), "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}/v2/health/ready")
        with Page() as page:
            page.resize(1000, 1000)
            page.prefer("light")
            page.open(f"http://127.0.0.1:{port}/")
            page.write(TEXT)
            page.choose_file("#image", image)
            page.press("Enter", control=True)
            page.wait("!document.getElementById('result').hidden")
            # The last entity, which the picture decides.
            page.run("[...document.querySelectorAll('#marked .entity')].at(-1).click()")
            time.sleep(1.0)  # until fades are over
            box = page.run(_ANSWER)
            shot = page.send(
                "Page.captureScreenshot", captureBeyondViewport=True, clip={**box, "scale": 1}
            )
            picture = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
            # A palette is enough for a page, and a quarter of the bytes.
            picture.quantize(128).save(out, optimize=True)
    finally:
        server.terminate()
        server.wait(40)


def _wait_until_ready(url: str) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return


def draw_speed(report: Path, out: Path) -> None:
    """Bars of milliseconds a post in float32, fastest first, one group for each workload."""
    lines = [
        line
        for line in join_rows(read_report(report).rows)
        if line.row.batch == BATCH and line.row.precision == PRECISION
    ]
    parts, y = [], 0
    for workload, title in WORKLOADS.items():
        group = [line for line in lines if line.row.workload == workload]
        slowest = max(line.ms_per_post for line in group)
        bars = [
            Bar(
                label=line.row.backend,
                value=line.ms_per_post,
                note=f"{slowest / line.ms_per_post:.1f}x",
                is_own=line.is_engine,
            )
            for line in group
        ]
        chart = bar_chart(bars, "ms", title)
        height = int(float(re.search(r'viewBox="0 0 \S+ (\S+)"', chart)[1]))
        # Placed by attributes of its own, so that it is drawn in its full size.
        chart = chart.replace("<svg ", f'<svg x="0" y="{y + 26}" height="{height}" ', 1)
        parts += [f'<text class="title" x="8" y="{y + 20}">{title}</text>', chart]
        y += height + 36
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}">'
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    out.write_text(head + STYLE + ground + "".join(parts) + "</svg>\n", encoding="utf-8")


def main() -> None:
    """Draw both, or one where the other's source is not given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, help="folder of make demo; without it, no page")
    parser.add_argument("--report", type=Path, default=REPORT)
    given = parser.parse_args()
    draw_speed(given.report, DOCS / "figures" / "speed.svg")
    if given.demo is not None:
        image = given.demo / "sample" / "images" / PICTURE
        draw_page(given.demo / "amlr.plan", image, DOCS / "figures" / "page.png")


if __name__ == "__main__":
    main()
