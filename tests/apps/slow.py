"""A Flask app whose answers take as long as the path says, and which reads bodies as slowly as they come."""

import time

from flask import Flask, request

from execution import recorded

app = Flask(__name__)
app.wsgi_app = recorded(app.wsgi_app)


@app.route("/")
def index():
    return "hello\n"


@app.route("/after/<float:seconds>")
def after(seconds):
    time.sleep(seconds)
    return "at last\n"


@app.route("/upload", methods=["POST"])
def upload():
    return f"{len(request.get_data())}\n"
