"""A Flask app whose Flask-Limiter counts addresses: keys do not matter to it, and a refused key is never counted."""

from flask import Flask, jsonify
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address

from execution import recorded
from known import refuse_unknown

app = Flask(__name__)
app.wsgi_app = recorded(app.wsgi_app)
limiter = Limiter(get_remote_address, app=app, storage_uri="memory://")
app.before_request(refuse_unknown)


@app.route("/data")
@limiter.limit("100/minute")
def data():
    return jsonify({"data": "served"})
