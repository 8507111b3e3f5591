"""Looks at every page of the built site in Chromium: no errors, no sideways scrolling on a phone, readable pictures,
and a search that finds things. Usage: ``python tooling/docsite/viewed_site.py site [SCREENSHOTS]``

Without Chromium it says so and ends without an error. With a second argument it also writes a picture of every page at
phone and desktop width, light and dark.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when it is run as a script

from browser import PROGRAMS, Tab, browser, find_browser

PHONE, DESKTOP = (375, 812), (1280, 900)
"""Width and height of windows, in CSS pixels."""
SMALLEST_PICTURE = 0.7
"""Least scale of a picture on a phone. Texts of drawings have 11 pixels, and fewer than 8 are hard to read."""
SEARCHED = ("ZBV", "pipeline.html")
"""A text, and a page that its search must find."""
INDEX = "/search/search_index.json"
"""Pages that search nothing get it without its texts: each would parse them in the background, which takes longest."""
PATIENCE_SECONDS = 20

LOOK = """(() => {
  const box = element => element.getBoundingClientRect();
  return {
    content: document.documentElement.scrollWidth,
    pictures: [...document.querySelectorAll("article img")].map(picture => ({
      source: picture.getAttribute("src"), natural: picture.naturalWidth, shown: box(picture).width,
    })),
  };
})()"""

TYPE = """(text => {
  const field = document.querySelector("[data-md-component=search-query]");
  field.focus();
  field.value = text;
  for (const kind of ["keyup", "input"]) field.dispatchEvent(new Event(kind, {bubbles: true}));
})"""

FOUND = "[...document.querySelectorAll('.md-search-result__link')].map(link => link.getAttribute('href'))"


def problems(site: Path, program: str) -> Iterator[str]:
    """One line per problem of a page, and of the search."""
    with served(site) as address, browser(program) as running:
        yield from search_problems(running.new_tab(), address)
    yield from page_by_page(site, program)


def page_by_page(site: Path, program: str) -> Iterator[str]:
    """The problems of all pages on a phone."""
    with served(site, searched=False) as address, browser(program) as running:
        tab = running.new_tab()
        tab.resize(*PHONE, phone=True)
        for page in pages(site):
            tab.open(f"{address}/{page}")
            yield from (f"{page}: {text}" for text in page_problems(tab))


def pages(site: Path) -> list[str]:
    """The addresses of all pages, below the site's."""
    return sorted(file.relative_to(site).as_posix() for file in site.rglob("*.html"))


def page_problems(tab: Tab) -> Iterator[str]:
    """The problems of the page that a phone shows."""
    look: dict[str, Any] = tab.evaluate(LOOK)
    # Not the window's width: a phone zooms out until it shows the whole page, with texts too small to read.
    if look["content"] > PHONE[0]:
        yield f"found {look['content']} pixels of content on a phone of {PHONE[0]}: the page scrolls sideways"
    for picture in look["pictures"]:
        scale = picture["shown"] / picture["natural"] if picture["natural"] else 0
        if scale < SMALLEST_PICTURE:
            yield (
                f"found {picture['source']} at {scale:.0%} of its size on a phone; allowed is {SMALLEST_PICTURE:.0%} "
                "and more, in a box that scrolls"
            )
    yield from tab.errors
    tab.errors.clear()


def search_problems(tab: Tab, address: str) -> Iterator[str]:
    """Whether the search finds what it must."""
    text, page = SEARCHED
    tab.open(f"{address}/index.html")
    tab.evaluate("document.querySelector('[data-md-toggle=search]').click()")
    tab.evaluate(f"{TYPE}({json.dumps(text)})")
    deadline, found = time.monotonic() + PATIENCE_SECONDS, []
    while not any(page in link for link in found) and time.monotonic() < deadline:
        time.sleep(0.1)
        found = tab.evaluate(FOUND)
    if not any(page in link for link in found):
        yield f"search: found {found or 'nothing'} for {text}; {page} must be among them"
    yield from (f"search: {error}" for error in tab.errors)
    tab.errors.clear()


def write_screenshots(site: Path, program: str, folder: Path) -> None:
    """Pictures of the upper part of every page, ``<page>-<width>-<scheme>.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    with served(site, searched=False) as address, browser(program) as running:
        tab = running.new_tab()
        for scheme in ("light", "dark"):
            tab.prefer(scheme)
            tab.open(f"{address}/index.html")
            tab.evaluate("localStorage.clear()")  # where the theme remembers the scheme of the first page
            for width, height in (PHONE, DESKTOP):
                tab.resize(width, height, phone=width == PHONE[0])
                for page in pages(site):
                    tab.open(f"{address}/{page}")
                    name = page.removesuffix(".html").replace("/", "-")
                    tab.screenshot(folder / f"{name}-{width}-{scheme}.png")


@contextmanager
def served(site: Path, *, searched: bool = True) -> Iterator[str]:
    """Serve the files of a folder on this machine, without the index if nothing is searched; yields the address."""
    handler = _Pages if searched else _PagesWithoutIndex
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Pages(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class _PagesWithoutIndex(_Pages):
    def do_GET(self) -> None:
        if self.path != INDEX:
            super().do_GET()
            return
        index = json.loads(Path(self.translate_path(self.path)).read_text(encoding="utf-8"))
        data = json.dumps({**index, "docs": []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main(site: Path, screenshots: Path | None = None) -> int:
    """Print the problems; returns the exit code."""
    program = find_browser()
    if program is None:
        print(f"The pages are not looked at: none of {', '.join(PROGRAMS)} is installed (Debian: chromium).")
        return 0
    began = time.monotonic()
    found = list(problems(site, program))
    for line in found:
        print(line)
    print(f"{len(pages(site))} pages in Chromium, {len(found)} problems, {time.monotonic() - began:.0f} s")
    if screenshots is not None:
        write_screenshots(site, program, screenshots)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
