"""How heavy the built site is, and how soon it is painted: `python docs/measure.py [--site _docs] [--page index.html …]`.

Opens each page three times in a Chromium that is already on this machine, with an empty cache each time, and prints the
files it loads, their bytes gzipped, and the median of the largest contentful paint.
"""

import argparse
import functools
import gzip
import http.server
import shutil
import statistics
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
PAINT = """new Promise(done => {
  new PerformanceObserver(list => done(list.getEntries().at(-1).startTime)).observe({type: 'largest-contentful-paint', buffered: true});
  setTimeout(() => done(-1), 5000);
})"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def measure(browser, base: str, site: Path, page: str) -> str:
    "One line about one page"
    paints, files = [], set()
    for _ in range(3):
        context = browser.new_context(viewport=dict(width=1280, height=900))
        tab = context.new_page()
        tab.on("request", lambda r: files.add(unquote(urlsplit(r.url).path.lstrip("/"))) if r.url.startswith(base) else None)
        tab.goto(f"{base}/{page}", wait_until="load")
        paints.append(tab.evaluate(PAINT))
        context.close()
    weight = sum(len(gzip.compress((site / name).read_bytes(), 6)) for name in files)
    return f"{page}: {len(files)} files, {weight / 1024:.0f} KiB gzipped, largest contentful paint after {statistics.median(paints):.0f} ms"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--site", type=Path, default=ROOT / "_docs")
    parser.add_argument("--page", nargs="+", default=["index.html", "medium/07_attention.html", "api/attention.html"])
    chosen = parser.parse_args()
    if not (chosen.site / "index.html").is_file():
        raise SystemExit(f"error: no site in {chosen.site}: run make docs")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
    if not found:
        raise SystemExit("error: no Chromium on this machine: install one (Debian, Ubuntu: apt install chromium)")
    from playwright.sync_api import sync_playwright

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=chosen.site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        for page in chosen.page:
            print(measure(browser, f"http://127.0.0.1:{server.server_port}", chosen.site, page), flush=True)
        browser.close()
    server.shutdown()


if __name__ == "__main__":
    main()
