"""A Flask app without any key check or limit."""

import hashlib

from flask import Flask, request

from execution import recorded

app = Flask(__name__)
app.wsgi_app = recorded(app.wsgi_app)


@app.route("/")
def index():
    return "hello\n"


@app.route("/upload", methods=["POST"])
def upload():
    """Answers with the length and the digest of the body as the app read it."""
    body = request.get_data()
    return f"{len(body)} {hashlib.sha256(body).hexdigest()}\n"


@app.route("/download/<int:size>")
def download(size):
    return b"x" * size
