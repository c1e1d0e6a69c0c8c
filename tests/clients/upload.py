"""Uploads a body with the `requests` library and prints status and answer, as a JSON list.

Usage: upload.py URL KEY SIZE length|chunked.
"""

import json
import sys

import requests


def pieces(size):
    """The body in pieces of odd sizes, which makes `requests` send it chunked."""
    sent = 0
    while sent < size:
        step = min(size - sent, 1 + sent % 4099)
        yield b"u" * step
        sent += step


def main():
    url, key, size, form = sys.argv[1:]
    size = int(size)
    body = pieces(size) if form == "chunked" else b"u" * size
    answer = requests.post(url, headers={"X-API-Key": key}, data=body, timeout=60)
    json.dump([answer.status_code, answer.text], sys.stdout)


main()
