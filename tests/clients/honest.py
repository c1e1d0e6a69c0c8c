"""Makes legitimate requests with one of four clients, checks every answer, and prints what happened, as JSON.

Usage: honest.py curl|requests|httpx|aiohttp KEY PLAN URL... PLAN is a JSON list of steps, done in turn at each URL:
{"do": "get"|"fields"|"upload"|"chunked"|"download", "size": BYTES, "count": N, "keep": whether one connection serves
them all}. Prints {"served": N, "failures": [TEXT...], "seconds": {"get": S, ...}}.
"""

import asyncio
import collections
import functools
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time

PATIENCE = 120
# What a server takes as one field is less than what is sent here as the head of a request.
FIELD = 4000


@functools.cache
def body(size):
    return hashlib.shake_256(b"upload").digest(size)


@functools.cache
def download(size):
    return hashlib.shake_256(b"download").digest(size)


def pieces(size):
    """The body in pieces of odd sizes, which makes the libraries send it chunked."""
    whole = body(size)
    at = 0
    while at < size:
        step = 1 + (at * 31) % 16381
        yield whole[at : at + step]
        at += step


async def pieces_one_by_one(size):
    for piece in pieces(size):
        yield piece


def padding(size):
    """Fields of `size` bytes in all."""
    whole = body(size).hex()[:size]
    return {f"X-Padding-{at:06}": whole[at : at + FIELD] for at in range(0, size, FIELD)}


def wanted(step):
    """The right answer to a step's requests."""
    size = step["size"]
    if step["do"] == "get":
        return b"hello\n"
    if step["do"] == "download":
        return download(size)
    sent = body(size).hex()[:size].encode() if step["do"] == "fields" else body(size)
    return f"{len(sent)} {hashlib.sha256(sent).hexdigest()}\n".encode()


def path(step):
    paths = {"get": "/", "fields": "/fields", "download": f"/download/{step['size']}"}
    return paths.get(step["do"], "/upload")


def headers(key, step):
    return {"X-API-Key": key, **(padding(step["size"]) if step["do"] == "fields" else {})}


def curl(key, url, step):
    """One curl per connection; yields status and body of each answer."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        count = step["count"] if step["keep"] else 1
        lines = [f'header = "{name}: {value}"' for name, value in headers(key, step).items()]
        if step["do"] in ("upload", "chunked"):
            (folder / "body").write_bytes(body(step["size"]))
            lines.append(f'data-binary = "@{folder}/body"')
        if step["do"] == "chunked":
            lines.append('header = "Transfer-Encoding: chunked"')
        lines += [f'url = "{url}{path(step)}"\noutput = "{folder}/{number}"' for number in range(count)]
        command = ["curl", "--silent", "--show-error", "--max-time", str(PATIENCE * count), "--config", "-"]
        command += ["--write-out", "%{http_code} %{size_upload}\n"]
        for _ in range(step["count"] // count):
            ran = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
            if ran.returncode != 0:
                raise RuntimeError(f"curl ended with {ran.returncode}: {ran.stderr.strip()}")
            for number, line in enumerate(ran.stdout.splitlines()):
                yield int(line.split()[0]), (folder / str(number)).read_bytes()


def requests(key, url, step):
    import requests

    def send(session):
        data = {"upload": body, "chunked": pieces}.get(step["do"], lambda _: None)(step["size"])
        answer = session.request(method(step), url + path(step), headers=headers(key, step), data=data, timeout=PATIENCE)
        return answer.status_code, answer.content

    yield from in_sessions(requests.Session, send, step)


def httpx(key, url, step):
    import httpx

    def send(client):
        content = {"upload": body, "chunked": pieces}.get(step["do"], lambda _: None)(step["size"])
        answer = client.request(method(step), url + path(step), headers=headers(key, step), content=content)
        return answer.status_code, answer.content

    yield from in_sessions(lambda: httpx.Client(timeout=PATIENCE), send, step)


def in_sessions(make, send, step):
    """All requests in one session, or each in its own."""
    if step["keep"]:
        with make() as session:
            for _ in range(step["count"]):
                yield send(session)
    else:
        for _ in range(step["count"]):
            with make() as session:
                yield send(session)


def aiohttp(key, url, step):
    import aiohttp

    async def send(session):
        data = {"upload": body, "chunked": pieces_one_by_one}.get(step["do"], lambda _: None)(step["size"])
        async with session.request(method(step), url + path(step), headers=headers(key, step), data=data) as answer:
            return answer.status, await answer.read()

    async def send_all():
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        answers = []
        async with aiohttp.ClientSession(timeout=timeout) as kept:
            for _ in range(step["count"]):
                if step["keep"]:
                    answers.append(await send(kept))
                else:
                    async with aiohttp.ClientSession(timeout=timeout) as session:
                        answers.append(await send(session))
        return answers

    yield from asyncio.run(send_all())


def method(step):
    return "POST" if step["do"] in ("upload", "chunked") else "GET"


def main():
    name, key, plan, *urls = sys.argv[1:]
    client = {"curl": curl, "requests": requests, "httpx": httpx, "aiohttp": aiohttp}[name]
    served, failures, seconds = 0, [], collections.Counter()
    for url in urls:
        for step in json.loads(plan):
            right = wanted(step)
            begin = time.monotonic()
            answered = 0
            try:
                for status, answer in client(key, url, step):
                    answered += 1
                    if (status, answer) == (200, right):
                        served += 1
                    else:
                        failures.append(f"{url} {step}: {status}, {len(answer)} bytes, {answer[:80]!r}")
            except Exception as error:  # whatever a client raises, the request was not served
                failures.append(f"{url} {step} after {answered}: {type(error).__name__}: {error}")
            seconds[step["do"]] += time.monotonic() - begin
    json.dump({"served": served, "failures": failures, "seconds": seconds}, sys.stdout)


main()
