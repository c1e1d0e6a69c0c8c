"""A Flask app with Flask-Limiter's fixed window of ten seconds, at whose edge two windows' worth passes."""

from flask import Flask, jsonify, request
from flask_limiter import Limiter

from execution import recorded
from known import refuse_unknown

app = Flask(__name__)
app.wsgi_app = recorded(app.wsgi_app)
limiter = Limiter(lambda: request.headers.get("X-API-Key", "anonymous"), app=app, storage_uri="memory://")
app.before_request(refuse_unknown)


@app.route("/data")
@limiter.limit("100 per 10 seconds")
def data():
    return jsonify({"data": "served"})
