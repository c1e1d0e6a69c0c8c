"""A Flask app with a check of keys and Flask-Limiter's limit of each key, counted in Redis.

Keys and limits are those that `cargo xtask bench flood` gives to whatever it compares.
"""

from flask import Flask, request
from flask_limiter import Limiter

from execution import recorded

LIMITS = {
    "good_client_0123456789": "1000000/minute",
    "first_request_01234567": "1000000/minute",
    "spent_client_012345678": "100/minute",
}

app = Flask(__name__)
app.wsgi_app = recorded(app.wsgi_app)


def key():
    return request.headers.get("X-API-Key")


@app.before_request
def authenticate():
    """Comes before the limiter's own, since it is registered before it."""
    if key() is None:
        return {"error": "a key is needed"}, 401
    if key() not in LIMITS:
        return {"error": "this key is not known"}, 403
    return None


Limiter(key, app=app, default_limits=[lambda: LIMITS[key()]], storage_uri="redis://127.0.0.1:6379")


@app.route("/")
def index():
    return "hello\n"
