"""Sends served and refused requests in turn on one connection, checks every response, and prints a summary as JSON.

Usage: alternating.py URL KEY COUNT SEED. Every second request has the key; the others, the first among them, have none, or
one that nobody knows.
Bodies and large responses are among both. Ends with an error at the first response that is wrong or out of order, and at
the first new connection.
"""

import hashlib
import http.client
import json
import random
import sys
import urllib.parse


def planned(draw, number, key):
    """Method, path, body and fields of a request."""
    keyed = number % 2 == 1
    fields = {"X-API-Key": key} if keyed else draw.choice([{}, {"X-API-Key": "nobody_knows_this_key"}])
    fields["X-Number"] = str(number)
    kind = draw.choice(["get", "get", "head", "upload", "download"])
    if kind == "upload":
        return keyed, "POST", "/upload", draw.randbytes(draw.choice([1, 100, 1400, 1461, 9000, 60000])), fields
    if kind == "download":
        return keyed, "GET", f"/download/{draw.choice([1, 1500, 40000, 200000])}", None, fields
    return keyed, "HEAD" if kind == "head" else "GET", "/", None, fields


def expected(method, path, body):
    """What the app answers."""
    if method == "HEAD":
        return b""
    if path == "/upload":
        return f"{len(body)} {hashlib.sha256(body).hexdigest()}\n".encode()
    if path.startswith("/download/"):
        return hashlib.shake_256(b"download").digest(int(path.rsplit("/", 1)[1]))
    return b"hello\n"


def main():
    url, key, count, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    draw = random.Random(seed)
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    connection.connect()
    first = connection.sock.getsockname()
    statuses = {}
    for number in range(count):
        keyed, method, path, body, fields = planned(draw, number, key)
        connection.request(method, path, body=body, headers=fields)
        response = connection.getresponse()
        content = response.read()
        what = f"request {number}, {method} {path}"
        if keyed:
            assert response.status == 200, f"{what}: {response.status}"
            assert content == expected(method, path, body), f"{what}: {len(content)} wrong bytes"
        else:
            assert response.status == 401, f"{what}: {response.status}"
            assert method == "HEAD" or json.loads(content)["status"] == 401, f"{what}: {content!r}"
        assert connection.sock is not None and connection.sock.getsockname() == first, f"{what}: the connection ended"
        statuses[response.status] = statuses.get(response.status, 0) + 1
    connection.close()
    json.dump(statuses, sys.stdout)


main()
