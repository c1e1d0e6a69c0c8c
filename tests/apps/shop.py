"""A Flask app with every kind of limit that Flask-Limiter has, to be taken over as a policy."""

from flask import Blueprint, Flask, request
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address

from execution import recorded

# An app may print whatever it likes while it is imported.
print("shop: starting")


def by_key():
    return request.headers.get("X-API-Key", "anonymous")


def by_client_and_key():
    return f"{request.headers.get('X-Client-Id', 'unknown')}:{request.headers.get('X-API-Key')}"


def by_user():
    raise LookupError("nobody is logged in")


def everybody():
    return "everybody"


app = Flask(__name__)
app.wsgi_app = recorded(app.wsgi_app)
limiter = Limiter(
    by_key,
    app=app,
    default_limits=["10/minute", "2000/day"],
    application_limits=["150/hour"],
    storage_uri="memory://",
)
reports = limiter.shared_limit("12/minute", scope="reports")


@app.route("/")
def index():
    return "index"


@app.route("/search")
@limiter.limit("20/minute", cost=5)
def search():
    return "found"


@app.route("/goods", methods=["GET"])
@app.route("/items", methods=["GET"])
def items():
    return "items"


@app.route("/items", methods=["POST"])
@limiter.limit("5/minute;50/hour")
def make():
    return "made"


@app.route("/user/<int:number>/orders", methods=["GET", "POST"])
@limiter.limit("3/minute", methods=["POST"])
def orders(number):
    return f"{number}"


@app.route("/report/a")
@reports
def first_report():
    return "a"


@app.route("/report/b")
@reports
def second_report():
    return "b"


@app.route("/files/<path:name>")
@limiter.limit("7/minute", key_func=get_remote_address)
def files(name):
    return name


@app.route("/files/<path:name>/edit")
def edit(name):
    return name


@app.route("/login", methods=["POST"])
@limiter.limit("3/minute", deduct_when=lambda response: response.status_code == 401)
def login():
    return "in"


@app.route("/computed")
@limiter.limit(lambda: "9/minute")
def computed():
    return "computed"


@app.route("/typo")
@limiter.limit("100/mintue")
def typo():
    return "typo"


@app.route("/client")
@limiter.limit("6/minute", key_func=by_client_and_key)
def client():
    return "client"


@app.route("/common", methods=["GET", "PUT"])
@limiter.limit("100/year", key_func=everybody, per_method=True)
def common():
    return "common"


@app.route("/account")
@limiter.limit("8/minute", key_func=by_user)
def account():
    return "account"


@app.route("/v<int:version>/ping")
def ping(version):
    return f"{version}"


@app.route("/health")
@limiter.exempt
def health():
    return "well"


admin = Blueprint("admin", __name__, url_prefix="/admin")
limiter.limit("4/minute")(admin)


@admin.route("/users")
def users():
    return "users"


app.register_blueprint(admin)


@limiter.request_filter
def is_internal():
    return request.headers.get("X-Internal") == "yes"


def create_app():
    return app
