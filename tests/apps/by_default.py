"""A Flask app with Flask-Limiter's default limit: it is counted before the key is looked at, by whatever key was sent."""

from flask import Flask, jsonify, request
from flask_limiter import Limiter

from execution import recorded
from known import refuse_unknown

app = Flask(__name__)
app.wsgi_app = recorded(app.wsgi_app)
limiter = Limiter(
    lambda: request.headers.get("X-API-Key", "anonymous"),
    app=app,
    default_limits=["100/minute"],
    storage_uri="memory://",
)
app.before_request(refuse_unknown)


@app.route("/data")
def data():
    return jsonify({"data": "served"})


@app.route("/counters")
@limiter.exempt
def counters():
    """How many counters the worker keeps."""
    return str(len(limiter.storage.storage))
