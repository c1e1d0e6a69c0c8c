"""Makes requests with headless Chromium's fetch and prints what each was answered, as a JSON list.

Usage: browser.py (METHOD URL FIELD SIZE)...; arguments and output are those of refused.py, and `connection` is the
browser's number of the connection. The script that fetches runs in a page of the server: the first of each server is asked
for without a key, so that the page is what is answered to such a request.

The browser is driven over a pipe (Chrome DevTools Protocol): one JSON object after the other, each behind it a NUL.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse

PATIENCE = 120
PAUSE = 0.2
ICON = 1
FETCH = """(async (method, url, headers, size) => {
  const body = size ? new Uint8Array(size).fill(117) : undefined;
  const answer = await fetch(url, {method, headers, body, cache: "no-store"});
  return {status: answer.status, fields: [...answer.headers], body: await answer.text()};
})"""


class Browser:
    """A running Chromium with one page."""

    def __init__(self, folder):
        read, self.write = os.pipe()
        self.read, write = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--disable-background-networking", f"--user-data-dir={folder}", "--remote-debugging-pipe"]
        # It takes commands from descriptor 3 and writes to 4.
        command = ["sh", "-c", f'exec "$@" 3<&{read} 4>&{write}', "sh", "chromium", *flags, "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=[read, write], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(read)
        os.close(write)
        self.received, self.events, self.numbers, self.session = b"", [], itertools.count(1), {}
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]}
        # Bodies that it sends are not to be told.
        self.call("Network.enable", maxPostDataSize=1)
        self.call("Page.enable")

    def message(self):
        while b"\0" not in self.received:
            received = os.read(self.read, 1 << 16)
            assert received, f"chromium ended with {self.process.wait()}"
            self.received += received
        first, self.received = self.received.split(b"\0", 1)
        return json.loads(first)

    def call(self, method, **parameters):
        """What a command gives; what happens meanwhile is kept."""
        number = next(self.numbers)
        os.write(self.write, json.dumps({"id": number, "method": method, "params": parameters} | self.session).encode() + b"\0")
        while (message := self.message()).get("id") != number:
            self.events.append(message)
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    def event(self, method, **wanted):
        """The next event of this kind that has such parameters."""
        while True:
            while self.events:
                event = self.events.pop(0)
                parameters = event.get("params", {})
                if event.get("method") == method and all(parameters.get(name) == value for name, value in wanted.items()):
                    return parameters
            self.events.append(self.message())

    def open(self, url):
        """Goes to a page, and gives its text."""
        self.call("Page.navigate", url=url)
        self.event("Page.loadEventFired")
        # The browser asks for the page's icon, too, over a connection of its own that it would go on with.
        time.sleep(ICON)
        return self.evaluate("document.body.innerText")

    def evaluate(self, expression):
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["result"].get("description"))
        return found["result"]["value"]

    def fetch(self, *arguments):
        answer = self.evaluate(f"{FETCH}({', '.join(map(json.dumps, arguments))})")
        # The script has the response, and is told of its end, before the connection is free again: a request that came at once
        # would open another.
        time.sleep(PAUSE)
        return answer | {"connection": self.event("Network.responseReceived", type="Fetch")["response"]["connectionId"]}


def main():
    signal.alarm(PATIENCE)
    answers, server = [], None
    # What the browser still writes while it ends is nobody's.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(folder)
        for method, url, field, size in zip(*[iter(sys.argv[1:])] * 4, strict=True):
            if server != (server := urllib.parse.urljoin(url, "/")):
                page = browser.open(server)
                assert json.loads(page)["status"] == 401, f"the page is {page!r}"
            fields = {} if field == "-" else dict([field.split(": ", 1)])
            try:
                answers.append(browser.fetch(method, url, fields, int(size)))
            except RuntimeError as error:
                answers.append({"error": str(error)})
        browser.call("Browser.close")
        browser.process.wait()
    json.dump(answers, sys.stdout)


main()
