"""Check a built site: its links, and how its pages look in a browser.

``python docs/check_site.py DIRECTORY`` reads every page and reports links to files and
anchors that do not exist, everything that would be loaded from another server, and
tools such as this one that were published with the pages.

If there is a Chromium, every page is opened in it, too, as wide as a desktop, a tablet
and a phone. Reported are what sticks out of the page, code that is cut off, names that
break, images that do not show, text that is too faint in either scheme, and a search
or a switch of the scheme that does nothing. With ``--browser`` there has to be one.
``--screenshots DIRECTORY`` keeps pictures of the pages. Needs nothing but the standard
library. Exits with 1 if it finds anything.
"""

from __future__ import annotations

import argparse
import functools
import json
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTHS = (1280, 768, 390)
#: Characters of the longest name that has to stand in one line.
LONGEST = 30
#: A word that the search has to find.
SEARCHED = "batch_timeout"
#: What Chromium may be called.
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
#: Seconds for the browser to look at all pages.
PATIENCE = 900
#: Elements whose address is loaded with the page, and those that are only followed.
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("source", "src")}
FOLLOWED = {("a", "href")}
#: What `link` elements say about the page rather than load.
ABOUT = {"canonical", "edit", "next", "prev", "alternate"}

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)

#: Opens each page in a frame of each width, one after the other, and reports.
HARNESS = """<!doctype html><meta charset="utf-8"><title>site check</title>
<style>body { margin: 0 } iframe { border: 0; height: 900px }</style>
<script>
const pages = PAGES, widths = WIDTHS;

function faultsOf(frame, width) {
  const page = frame.contentDocument, root = page.scrollingElement, faults = [];
  if (root.scrollWidth > width) {
    const wide = [...page.body.querySelectorAll("*")].filter(
      (each) => each.getBoundingClientRect().right > width + 1 && !isInScroller(each));
    const names = wide.slice(-3).map(
      (each) => `${each.tagName.toLowerCase()}.${each.className} ` +
        JSON.stringify(each.textContent.trim().slice(0, 40)));
    faults.push(`is ${root.scrollWidth} wide: ${names.join(", ")}`);
  }
  for (const code of page.querySelectorAll("pre > code"))
    if (code.clientWidth && code.scrollWidth > code.clientWidth + 1)
      faults.push(`code is cut off after ${code.clientWidth} of ` +
        `${code.scrollWidth} pixels: ${JSON.stringify(longestLineOf(code))}`);
  for (const name of page.querySelectorAll("td:first-child code"))
    if (name.getClientRects().length > 1)
      faults.push(`name breaks in a table: ${name.textContent}`);
  for (const code of page.querySelectorAll(":is(p, li, td) code:not(pre *)"))
    for (const name of brokenNamesIn(code)) faults.push(`name breaks: ${name}`);
  for (const image of page.images)
    if (image.complete && image.naturalWidth === 0)
      faults.push(`image does not show: ${image.src}`);
  faults.push(...faintIn(page, "default"), ...faintIn(page, "slate"));
  return faults;
}

// Names of arguments and options that stand in two lines. Long ones may.
function* brokenNamesIn(code) {
  const page = code.ownerDocument;
  const texts = page.createTreeWalker(code, NodeFilter.SHOW_TEXT);
  for (let text = texts.nextNode(); text; text = texts.nextNode())
    for (const { 0: name, index } of text.data.matchAll(/[-\\w]+/g)) {
      if (name.length > LONGEST) continue;
      const range = page.createRange();
      range.setStart(text, index);
      range.setEnd(text, index + name.length);
      const tops = [...range.getClientRects()].map((each) => Math.round(each.top));
      if (new Set(tops).size > 1) yield name;
    }
}

const channelsOf = (colour) => colour.match(/[\\d.]+/g).map(Number);

function luminanceOf(channels) {
  const [red, green, blue] = channels.map((each) => each / 255).map(
    (each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function mixed(above, below) {
  const share = above[3] ?? 1;
  return below.map((each, at) => above[at] * share + each * (1 - share));
}

// The text of an element against what is behind it, by WCAG 2.2.
function contrastOf(element, view) {
  const colours = [];
  for (let each = element; each; each = each.parentElement)
    colours.push(channelsOf(view.getComputedStyle(each).backgroundColor));
  const behind = colours.reverse().reduce(
    (below, above) => mixed(above, below), [255, 255, 255]);
  const text = mixed(channelsOf(view.getComputedStyle(element).color), behind);
  const both = [luminanceOf(text), luminanceOf(behind)];
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}

function faintIn(page, scheme) {
  const still = page.createElement("style");
  still.textContent = "* { transition: none !important }";
  page.head.append(still);
  page.body.dataset.mdColorScheme = scheme;
  const view = page.defaultView, faults = new Set();
  for (const element of page.body.querySelectorAll("*")) {
    const hasText = [...element.childNodes].some(
      (each) => each.nodeType === 3 && each.data.trim());
    if (!hasText || !element.checkVisibility({ checkOpacity: true })) continue;
    const style = view.getComputedStyle(element), size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const ratio = contrastOf(element, view);
    if (ratio < (isLarge ? 3 : 4.5))
      faults.add(`text is faint in ${scheme}, ${ratio.toFixed(2)}: ` +
        `${element.tagName.toLowerCase()}.${element.className} ` +
        JSON.stringify(element.textContent.trim().slice(0, 40)));
  }
  return [...faults].slice(0, 5);
}

function longestLineOf(code) {
  return code.textContent.split("\\n").reduce(
    (one, other) => other.length > one.length ? other : one).slice(0, 60);
}

function isInScroller(element) {
  const { body } = element.ownerDocument;
  for (let each = element.parentElement; each !== body; each = each.parentElement) {
    const style = element.ownerDocument.defaultView.getComputedStyle(each);
    if (style.overflowX !== "visible" || style.position === "fixed") return true;
  }
  return false;
}

// Until what is asked for is there, for some seconds.
async function comes(find) {
  for (let tries = 0; tries < 300; tries++) {
    if (find()) return true;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return false;
}

// Whether a reader can search, and switch between light and dark.
async function uselessIn(frame) {
  const page = frame.contentDocument, faults = [];
  const query = page.querySelector("[data-md-component=search-query]");
  query.focus();
  query.value = SEARCHED;
  query.dispatchEvent(new frame.contentWindow.Event("input", { bubbles: true }));
  query.dispatchEvent(new frame.contentWindow.Event("keyup", { bubbles: true }));
  if (!await comes(() => page.querySelector(".md-search-result__item a")))
    faults.push(`the search does not find ${SEARCHED}`);
  const scheme = page.body.dataset.mdColorScheme;
  [...page.querySelectorAll("[data-md-component=palette] label")].find(
    (label) => !label.hidden).click();
  if (!await comes(() => page.body.dataset.mdColorScheme !== scheme))
    faults.push(`the scheme stays ${scheme}`);
  return faults;
}

function open(path, width, look = faultsOf) {
  return new Promise((resolve) => {
    const frame = document.createElement("iframe");
    frame.style.width = width + "px";
    frame.onload = () => {
      setTimeout(async () => {
        const faults = await look(frame, width);
        frame.remove();
        resolve(faults.map((fault) => `${path} at ${width}: ${fault}`));
      }, 150);
    };
    frame.src = path;
    document.body.append(frame);
  });
}

addEventListener("load", async () => {
  const faults = await open("/index.html", widths[0], uselessIn);
  for (const path of pages)
    for (const width of widths) faults.push(...await open(path, width));
  await fetch("/report", { method: "POST", body: JSON.stringify(faults) });
});
</script>
"""
#: A page as a phone shows it; the window itself cannot be that narrow.
FRAME = """<!doctype html><meta charset="utf-8"><style>body { margin: 0 }
iframe { border: 0; height: HEIGHTpx; width: WIDTHpx }</style>
<iframe src="PATH"></iframe>"""


class Reference(NamedTuple):
    """An address in a page."""

    kind: tuple[str, str]
    address: str


class Page(HTMLParser):
    """The addresses in a page, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[Reference] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element refers to, and what it can be referred to by."""
        values = dict(attrs)
        self.anchors.update(
            value for name in ("id", "name") if (value := values.get(name))
        )
        if tag == "link" and values.get("rel") in ABOUT:
            return
        for name, value in attrs:
            if value is not None and (tag, name) in LOADED | FOLLOWED:
                self.references.append(Reference((tag, name), value))


def read_pages(site: Path) -> dict[str, Page]:
    """Read all pages, by their paths as a browser asks for them."""
    return {
        f"/{file.relative_to(site).as_posix()}": Page(file.read_text(encoding="utf-8"))
        for file in sorted(site.rglob("*.html"))
    }


def dead_references(site: Path, pages: dict[str, Page]) -> Iterator[str]:
    """Name every reference that leads nowhere, or loads something from elsewhere."""
    for path, page in pages.items():
        if path == "/404.html":
            continue  # shown for any path: its addresses are absolute
        for kind, address in page.references:
            parts = urlsplit(address)
            if parts.scheme in {"mailto", "data", "javascript"}:
                continue
            if parts.netloc:
                if kind in LOADED:
                    yield f"{path} loads {address}"
                continue
            fault = fault_of(urljoin(path, address), site, pages)
            if fault:
                yield f"{path} refers to {address}: {fault}"


def fault_of(address: str, site: Path, pages: dict[str, Page]) -> str | None:
    """Say what is wrong with an address within the site."""
    parts = urlsplit(address)
    path = unquote(parts.path)
    if path.endswith("/"):
        path += "index.html"
    if not (site / path.lstrip("/")).is_file():
        return "no such file"
    anchor = unquote(parts.fragment)
    if anchor and path in pages and anchor not in pages[path].anchors:
        return "no such anchor"
    return None


class Handler(SimpleHTTPRequestHandler):
    """Serves the site, the harness and frames, and takes the report."""

    reports: queue.Queue[list[str]]
    pages: list[str]

    def do_GET(self) -> None:
        """Serve a file, the harness, or a frame around a page."""
        path = urlsplit(self.path)
        if path.path == "/harness":
            text = HARNESS.replace("PAGES", json.dumps(self.pages))
            text = text.replace("LONGEST", str(LONGEST))
            text = text.replace("SEARCHED", json.dumps(SEARCHED))
            self._send(text.replace("WIDTHS", json.dumps(WIDTHS)))
        elif path.path == "/frame":
            width, height, page = path.query.split(",", maxsplit=2)
            text = FRAME.replace("WIDTH", width).replace("HEIGHT", height)
            self._send(text.replace("PATH", unquote(page)))
        else:
            super().do_GET()

    def do_POST(self) -> None:
        """Take what the harness has found."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._send("")
        self.reports.put(json.loads(body))

    def _send(self, text: str) -> None:
        data = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name
        """Say nothing."""


@contextmanager
def serve(site: Path, pages: list[str]) -> Iterator[tuple[str, queue.Queue[list[str]]]]:
    """Serve the site on a free port; give its address, and where reports arrive."""
    reports: queue.Queue[list[str]] = queue.Queue()
    handler = type("SiteHandler", (Handler,), {"reports": reports, "pages": pages})
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0),
        functools.partial(handler, directory=str(site)),
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", reports
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def chromium(browser: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run Chromium with a new profile; end it and remove the profile afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [browser, *FLAGS, f"--user-data-dir={profile}", *arguments],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def look(site: Path, pages: list[str], browser: str) -> list[str]:
    """Open all pages in a browser, and give what is wrong with them."""
    with (
        serve(site, pages) as (server, reports),
        # A debugging port keeps headless Chromium open after the page has loaded.
        chromium(browser, "--remote-debugging-port=0", f"{server}/harness"),
    ):
        try:
            return reports.get(timeout=PATIENCE)
        except queue.Empty:
            return [f"the browser has not reported within {PATIENCE} seconds"]


def take_pictures(site: Path, pages: list[str], browser: str, target: Path) -> None:
    """Keep a picture of each page in each width."""
    target.mkdir(parents=True, exist_ok=True)
    with serve(site, pages) as (server, _):
        for path in pages:
            name = path.removesuffix("index.html").strip("/").replace("/", "-")
            for width in WIDTHS:
                height = 1600
                picture = target / f"{name or 'home'}-{width}.png"
                with chromium(
                    browser,
                    f"--screenshot={picture}",
                    f"--window-size={max(width, 500)},{height}",
                    "--virtual-time-budget=2000",
                    f"{server}/frame?{width},{height},{quote(path)}",
                ) as process:
                    process.wait(60)


def main() -> None:
    """Check, and exit with every fault found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path, help="the built site")
    parser.add_argument("--browser", action="store_true", help="do not go without")
    parser.add_argument("--screenshots", type=Path, default=None)
    parser.add_argument("--only", default="", help="pictures of pages with this text")
    options = parser.parse_args()
    pages = read_pages(options.site)
    if not pages:
        sys.exit(f"there is no page in {options.site}")
    faults = list(dead_references(options.site, pages))
    print(f"{len(pages)} pages: {len(faults)} dead or foreign references")
    tools = sorted(options.site.glob("*.py"))  # they stand beside the pages
    faults += [
        f"/{file.name} is published, and is no part of the site" for file in tools
    ]
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is not None:
        shown = [path for path in pages if path != "/404.html"]
        found = look(options.site, shown, browser)
        print(f"{len(shown)} pages in {browser}: {len(found)} faults")
        faults += found
        if options.screenshots is not None:
            chosen = [path for path in shown if options.only in path]
            take_pictures(options.site, chosen, browser, options.screenshots)
    elif options.browser or options.screenshots is not None:
        sys.exit(f"there is no browser: {', '.join(BROWSERS)}")
    else:
        print("skipped: no Chromium: nobody has looked at the pages")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
