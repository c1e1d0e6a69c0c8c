"""A Flask app that answers with the host that it takes a request to be for."""

from flask import Flask, request

from execution import recorded

app = Flask(__name__)
app.wsgi_app = recorded(app.wsgi_app)


@app.route("/", defaults={"path": ""}, methods=["GET", "POST"])
@app.route("/<path:path>", methods=["GET", "POST"])
def any_path(path):
    return f"{request.host}\n"
