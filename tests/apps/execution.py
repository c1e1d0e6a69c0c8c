"""The apps' record of what they really executed: one appended line per request.

Each line is written by one write() to a file opened with O_APPEND, so that workers never mix their lines.
"""

import os

from flask import request

LOG = os.open(os.environ["EXECUTION_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def record():
    """Appends key, method, path and worker of the request under way; `-` stands for no key."""
    key = request.headers.get("X-API-Key", "-")
    os.write(LOG, f"{key}\t{request.method}\t{request.path}\t{os.getpid()}\n".encode())
