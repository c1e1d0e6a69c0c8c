"""Sends requests with the `requests` library from many threads and prints how each ended, as JSON.

Usage: flood.py URL CLIENTS COUNT KEY, where KEY is a key or `none`. Every request is a new connection.
"""

import collections
import concurrent.futures
import json
import sys

import requests


def send(url, key):
    headers = {} if key == "none" else {"X-API-Key": key}
    try:
        return str(requests.get(url, headers=headers, timeout=30).status_code)
    except requests.exceptions.Timeout:
        return "timeout"
    except requests.exceptions.ConnectionError:
        return "reset"


def main():
    url, clients, count, key = sys.argv[1:]
    with concurrent.futures.ThreadPoolExecutor(int(clients)) as pool:
        endings = collections.Counter(pool.map(lambda _: send(url, key), range(int(count))))
    json.dump(endings, sys.stdout)


main()
