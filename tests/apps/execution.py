"""The apps' record of what they really executed: one appended line per call of the app.

It is written where the server calls the app, before any code of Flask, so that nothing is executed without a line.
Each line is written by one write() to a file opened with O_APPEND, so that workers never mix their lines.
"""

import os

LOG = os.open(os.environ["EXECUTION_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def recorded(wsgi):
    """The app `wsgi`, with a record of key, method, path, worker and client's port of each request.

    `-` stands for no key. Whatever is not printable ASCII is escaped, so that no value can break a line.
    """

    def application(environ, start_response):
        fields = [environ.get("HTTP_X_API_KEY", "-"), environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")]
        line = b"\t".join(field.encode("unicode_escape") for field in fields)
        os.write(LOG, line + f"\t{os.getpid()}\t{environ.get('REMOTE_PORT', 0)}\n".encode())
        return wsgi(environ, start_response)

    return application
