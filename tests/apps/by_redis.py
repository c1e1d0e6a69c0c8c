"""Three Flask apps whose Flask-Limiter counts keys in Redis, one for each way to go on when Redis is gone.

Each lies under a path of its own: /error says so to the client, /swallow limits nothing then, and /fallback counts in each
worker's memory.
"""

from flask import Flask, jsonify, request
from flask_limiter import Limiter
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from execution import recorded
from known import refuse_unknown


def counting_in_redis(**when_gone):
    counted = Flask(__name__)
    limiter = Limiter(
        lambda: request.headers.get("X-API-Key", "anonymous"),
        app=counted,
        storage_uri="redis://127.0.0.1:6379",
        storage_options={"socket_connect_timeout": 5},
        **when_gone,
    )
    counted.before_request(refuse_unknown)

    @counted.route("/data")
    @limiter.limit("100/minute")
    def data():
        return jsonify({"data": "served"})

    return counted


app = recorded(
    DispatcherMiddleware(
        NotFound(),
        {
            "/error": counting_in_redis(),
            "/swallow": counting_in_redis(swallow_errors=True),
            "/fallback": counting_in_redis(in_memory_fallback_enabled=True),
        },
    )
)
