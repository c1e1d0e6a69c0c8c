"""A Flask app whose Flask-Limiter counts keys in each worker's own memory, so that every worker gives the whole limit."""

from flask import Flask, jsonify, request
from flask_limiter import Limiter

from execution import recorded
from known import refuse_unknown

app = Flask(__name__)
app.wsgi_app = recorded(app.wsgi_app)
limiter = Limiter(lambda: request.headers.get("X-API-Key", "anonymous"), app=app, storage_uri="memory://")
app.before_request(refuse_unknown)


@app.route("/data")
@limiter.limit("100/minute")
def data():
    return jsonify({"data": "served"})


@app.route("/typo")
@limiter.limit("100/mintue")
def typo():
    """Flask-Limiter logs that it cannot read this limit, and goes on without."""
    return jsonify({"data": "served"})
