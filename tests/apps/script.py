"""A Flask app that executes every path, for the adversarial scripts: each has a path of its own."""

from flask import Flask

from execution import record

app = Flask(__name__)
app.before_request(record)


@app.route("/", defaults={"path": ""}, methods=["GET", "POST"])
@app.route("/<path:path>", methods=["GET", "POST"])
def run(path):
    return "executed\n"
