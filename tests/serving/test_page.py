"""The page in headless Chromium: type, upload, read, fail, on narrow and dark screens."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from amlr.runtime import Engine
from amlr.serving.settings import ServerSettings
from chromium import Page
from live_server import LiveServer
from requirements import require

# Line breaks and characters outside the BMP would shift offsets that are counted differently.
TEXT = "Kevin Love 😀 at Quicken Loans Arena\nin New York"
DONE = "!document.getElementById('result').hidden || !document.getElementById('error').hidden"
MARKED = "[...document.querySelectorAll('#marked .entity')].map((e) => e.firstChild.textContent)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    require("browser")
    with Page() as page:
        yield page


@pytest.fixture
def page(browser: Page, server: LiveServer) -> Iterator[Page]:
    browser.resize(1100, 900)
    browser.prefer("light")
    browser.console.clear()
    browser.open(f"{server.url}/")
    yield browser
    # Nothing failed to load, no policy was violated, nothing was thrown.
    assert browser.console == []


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "photo.png"
    image = Image.linear_gradient("L").resize((300, 200)).convert("RGB")
    image.paste((250, 30, 30), (200, 20, 280, 90))
    image.save(path)
    return path


def text_of(page: Page, identifier: str) -> str:
    return str(page.run(f"document.getElementById('{identifier}').textContent"))


def test_type_upload_and_read_by_keyboard(page: Page, engine: Engine, picture: Path) -> None:
    assert page.run("document.activeElement.id") == "text"
    page.write(TEXT)
    page.choose_file("#image", picture)
    page.press("Enter", control=True)
    page.wait(DONE)
    expected = engine.tag(TEXT, picture)
    assert page.run(MARKED) == [e.text for e in expected.entities]
    shown = page.run(
        "[...document.querySelectorAll('#table tbody tr')].map((r) => "
        "[...r.cells].slice(0, 2).map((c) => c.textContent))"
    )
    assert shown == [[e.text, e.label] for e in expected.entities]
    assert text_of(page, "status").startswith(f"{len(expected.entities)} entit")
    assert "For “" in text_of(page, "caption")
    assert "the entities are the same" in text_of(page, "changes") or (
        "changes the answer" in text_of(page, "changes")
    )
    assert "Total" in text_of(page, "times")
    # The focus moved to the result; the next stops are the entities.
    assert page.run("document.activeElement.id") == "result-title"
    page.press("Tab")
    page.press("Tab")
    page.press(" ")
    pressed = "[...document.querySelectorAll('#marked .entity')].map((e) => e.ariaPressed)"
    assert page.run(pressed).index("true") == 1
    assert page.run("document.getElementById('canvas').width") == 300


def test_screen_readers_find_names(page: Page, picture: Path) -> None:
    page.write(TEXT)
    page.choose_file("#image", picture)
    page.press("Enter", control=True)
    page.wait(DONE)
    spoken = page.spoken()
    for role, name in (
        ("textbox", "Text"),
        ("button", "Find entities"),
        ("heading", "Entities"),
        ("columnheader", "Confidence"),
    ):
        assert (role, name) in spoken
    assert any(role == "image" and "the model looked" in name for role, name in spoken)
    assert all(name for role, name in spoken if role in ("button", "textbox", "link"))


def test_errors_are_shown_and_go_away(page: Page, server: LiveServer) -> None:
    page.run("document.getElementById('submit').click()")
    page.wait(DONE)
    assert "Write or paste a text" in text_of(page, "error")
    assert ("alert", "") in page.spoken() or any(role == "alert" for role, _ in page.spoken())
    page.run("document.getElementById('text').maxLength = 100000")
    page.write("x" * 20_001)
    page.press("Enter", control=True)
    page.wait("document.getElementById('error').textContent.includes('20001 characters')")
    page.console.clear()  # the browser notes the 422
    page.run("document.getElementById('text').select()")
    page.write("Paris")
    page.press("Enter", control=True)
    page.wait("!document.getElementById('result').hidden")
    assert page.run("document.getElementById('error').hidden")


def test_pasted_picture_is_named_shown_and_removed(page: Page, picture: Path) -> None:
    content = base64.b64encode(picture.read_bytes()).decode()
    page.run(
        f"""(() => {{
          const bytes = Uint8Array.from(atob("{content}"), (c) => c.charCodeAt(0));
          const clipboardData = new DataTransfer();
          clipboardData.items.add(new File([bytes], "pasted.png", {{ type: "image/png" }}));
          window.dispatchEvent(new ClipboardEvent("paste", {{ clipboardData, cancelable: true }}));
        }})()"""
    )
    page.wait("document.getElementById('thumb').naturalWidth === 300")
    assert page.run("document.getElementById('image').files[0].name") == "pasted.png"
    page.run("document.getElementById('remove').click()")
    assert page.run("document.getElementById('image').files.length") == 0
    assert page.run("document.getElementById('picture-name').hidden")


def test_bad_picture_is_said_and_the_text_still_tagged(page: Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    page.write("Paris in May")
    page.choose_file("#image", bad)
    page.press("Enter", control=True)
    page.wait(DONE)
    assert "Picture not used" in text_of(page, "warnings")
    assert page.run("document.getElementById('figure').hidden")


def test_posts_cannot_become_part_of_the_page(page: Page) -> None:
    page.write("<img src=x onerror=document.title='owned'> Paris <b>bold</b>")
    page.press("Enter", control=True)
    page.wait(DONE)
    assert page.run("document.querySelectorAll('#marked img, #marked b').length") == 0
    assert "owned" not in page.run("document.title")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1100])
def test_narrow_and_dark(page: Page, picture: Path, scheme: str, width: int) -> None:
    page.resize(width, 800)
    page.prefer(scheme)
    page.write(TEXT)
    page.choose_file("#image", picture)
    page.press("Enter", control=True)
    page.wait(DONE)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert float(page.run(CONTRAST)) >= 4.5


# Lowest contrast of texts against what is painted behind them (WCAG 2).
CONTRAST = """(() => {
  const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = (c) => [.2126, .7152, .0722].reduce((sum, w, i) => sum + w * linear(c[i] / 255), 0);
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgb(getComputedStyle(node).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const texts = "p, label, button, h1, h2, h3, td, th, small, dt, dd, a, caption";
  let least = 21;
  for (const node of document.querySelectorAll(texts)) {
    if (!node.offsetParent || !node.textContent.trim()) continue;
    const pair = [light(rgb(getComputedStyle(node).color)), light(behind(node))];
    least = Math.min(least, (Math.max(...pair) + .05) / (Math.min(...pair) + .05));
  }
  return least;
})()"""


def test_key_is_asked_for(browser: Page, engine: Engine) -> None:
    settings = ServerSettings(warm_up=False, api_keys=("open sesame",))
    with LiveServer(engine, settings) as locked:
        browser.open(f"{locked.url}/")
        browser.write("Paris")
        browser.press("Enter", control=True)
        browser.wait(DONE)
        assert "needs an API key" in text_of(browser, "error")
        browser.run("document.getElementById('key').focus()")
        browser.write("open sesame")
        browser.run("document.getElementById('submit').click()")
        browser.wait("!document.getElementById('result').hidden")


def test_docs_list_every_operation(page: Page, server: LiveServer) -> None:
    page.open(f"{server.url}/docs")
    page.wait("!document.getElementById('operations').hasAttribute('aria-busy')")
    shown = page.run("[...document.querySelectorAll('article h3')].map((h) => h.textContent)")
    with server.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    listed = [f"{m.upper()} {p}" for p, ms in paths.items() for m in ms if m != "head"]
    assert sorted(shown) == sorted(listed)
    contents = "[...document.querySelectorAll('#contents a')].map((a) => "
    assert page.run(contents + "a.textContent)") == shown
    assert page.run(
        contents + "document.querySelector(a.hash).querySelector('h3').textContent)"
    ) == (shown)


def test_page_needs_nothing_from_elsewhere(server: LiveServer) -> None:
    with server.client() as client:
        for path in ("/", "/docs", "/static/app.js", "/static/style.css", "/static/docs.js"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        assert client.get("/static/none.js").status_code == 404
