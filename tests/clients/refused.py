"""Makes requests with one of four clients and prints what each was answered, as a JSON list.

Usage: refused.py curl|requests|httpx|aiohttp (METHOD URL FIELD SIZE)...; FIELD is a further header field as `Name: value`
or `-` for none, SIZE the bytes of the body. Each request is sent on a connection of its own. Prints for each
{"status": N, "fields": [[NAME, VALUE]...], "body": TEXT}, or {"error": TEXT} if the client got no answer.
"""

import asyncio
import json
import pathlib
import subprocess
import sys
import tempfile

PATIENCE = 30


def curl(method, url, fields, body):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "sent").write_bytes(body)
        command = ["curl", "--silent", "--show-error", "--max-time", str(PATIENCE), "--output", folder / "body"]
        command += ["--dump-header", folder / "head"]
        command += ["--head"] if method == "HEAD" else ["--request", method]
        command += ["--data-binary", f"@{folder}/sent"] if body else []
        for name, value in fields.items():
            command += ["--header", f"{name}: {value}"]
        subprocess.run([*command, url], check=True, capture_output=True, text=True)
        lines = (folder / "head").read_text().strip().splitlines()
        received = folder / "body"
        text = received.read_text() if method != "HEAD" and received.exists() else ""
        return int(lines[0].split()[1]), [line.split(": ", 1) for line in lines[1:]], text


def requests(method, url, fields, body):
    import requests

    answer = requests.request(method, url, headers=fields, data=body, timeout=PATIENCE)
    return answer.status_code, list(answer.headers.items()), answer.text


def httpx(method, url, fields, body):
    import httpx

    answer = httpx.request(method, url, headers=fields, content=body, timeout=PATIENCE)
    return answer.status_code, list(answer.headers.items()), answer.text


def aiohttp(method, url, fields, body):
    import aiohttp

    async def send():
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            async with session.request(method, url, headers=fields, data=body) as answer:
                return answer.status, list(answer.headers.items()), await answer.text()

    return asyncio.run(send())


def main():
    name, *words = sys.argv[1:]
    client = {"curl": curl, "requests": requests, "httpx": httpx, "aiohttp": aiohttp}[name]
    answers = []
    for method, url, field, size in zip(*[iter(words)] * 4, strict=True):
        fields = {} if field == "-" else dict([field.split(": ", 1)])
        try:
            status, received, text = client(method, url, fields, b"u" * int(size))
            answers.append({"status": status, "fields": received, "body": text})
        except subprocess.CalledProcessError as error:
            answers.append({"error": f"curl ended with {error.returncode}: {error.stderr.strip()}"})
        except Exception as error:  # whatever a client raises, it got no answer
            answers.append({"error": f"{type(error).__name__}: {error}"})
    json.dump(answers, sys.stdout)


main()
