"""A Flask app with the naive limiter: a before_request handler over a global dictionary.

It skips requests without a key, gives every new key a bucket of its own, and counts in each worker by itself.
"""

import collections
import time

from flask import Flask, jsonify, request

from execution import recorded

LIMIT = 100
WINDOW = 60

app = Flask(__name__)
app.wsgi_app = recorded(app.wsgi_app)
requests_by_key = collections.defaultdict(list)


@app.before_request
def limit():
    key = request.headers.get("X-API-Key")
    if key is None:
        return None
    now = time.monotonic()
    recent = [instant for instant in requests_by_key[key] if now - instant < WINDOW]
    requests_by_key[key] = recent
    if len(recent) >= LIMIT:
        return jsonify({"error": "Too many requests"}), 429
    recent.append(now)
    return None


@app.route("/")
def index():
    return jsonify({"data": "served"})
