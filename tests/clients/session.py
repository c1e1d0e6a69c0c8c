"""Sends requests over one kept-alive `requests` session and prints each ending, as a JSON list.

Usage: session.py URL KEY...; each KEY is a key or `none`. After a connection error the session opens a new one.
"""

import json
import sys

import requests


def main():
    url, *keys = sys.argv[1:]
    endings = []
    with requests.Session() as session:
        for key in keys:
            headers = {} if key == "none" else {"X-API-Key": key}
            try:
                endings.append(str(session.get(url, headers=headers, timeout=30).status_code))
            except requests.exceptions.Timeout:
                endings.append("timeout")
            except requests.exceptions.ConnectionError:
                endings.append("reset")
    json.dump(endings, sys.stdout)


main()
