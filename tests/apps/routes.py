"""A Flask app with many routes and no check of its own: what it executes is what was let through."""

from flask import Flask

from execution import recorded

app = Flask(__name__)
app.wsgi_app = recorded(app.wsgi_app)
# It answers every spelling of a path, and redirects none.
app.url_map.merge_slashes = False


@app.route("/", defaults={"path": ""}, methods=["GET", "POST", "PUT", "DELETE", "OPTIONS"])
@app.route("/<path:path>", methods=["GET", "POST", "PUT", "DELETE", "OPTIONS"])
def any_path(path):
    return f"{path}\n"
