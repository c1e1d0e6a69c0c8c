"""A Flask app whose Flask-Limiter counts a client's id, which the client chooses, together with its key."""

from flask import Flask, jsonify, request
from flask_limiter import Limiter

from execution import recorded
from known import refuse_unknown


def client_and_key():
    key = request.headers.get("X-API-Key")
    return f"{request.headers.get('X-Client-Id', 'unknown')}:{key or 'anon'}"


app = Flask(__name__)
app.wsgi_app = recorded(app.wsgi_app)
limiter = Limiter(client_and_key, app=app, storage_uri="memory://")
app.before_request(refuse_unknown)


@app.route("/data")
@limiter.limit("100/minute")
def data():
    return jsonify({"data": "served"})
