"""A Flask app without any key check or limit, for large and checked bodies in both directions."""

import hashlib

from flask import Flask, request

from execution import recorded

app = Flask(__name__)
app.wsgi_app = recorded(app.wsgi_app)


@app.route("/")
def index():
    return "hello\n"


@app.route("/fields")
def fields():
    """Answers with the digest of the fields that fill the head, as the app read them."""
    padding = "".join(value for name, value in sorted(request.headers.items()) if name.startswith("X-Padding"))
    return f"{len(padding)} {hashlib.sha256(padding.encode()).hexdigest()}\n"


@app.route("/upload", methods=["POST"])
def upload():
    """Answers with the length and the digest of the body as the app read it."""
    body = request.get_data()
    return f"{len(body)} {hashlib.sha256(body).hexdigest()}\n"


@app.route("/download/<int:size>")
def download(size):
    """Answers with bytes that a client can compute too."""
    return hashlib.shake_256(b"download").digest(size)
