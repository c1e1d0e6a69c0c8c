"""Exchange rates: a small read-mostly JSON API, as many Flask apps are.

It knows nothing of rate limits and checks no keys; whoever reaches it is served. Run it as any other:

    gunicorn --workers 4 --bind 127.0.0.1:8000 app:app
"""

from decimal import Decimal, InvalidOperation

from flask import Flask, abort, jsonify, request

app = Flask(__name__)

# One euro in each currency.
RATES = {
    "EUR": Decimal("1"),
    "CHF": Decimal("0.9412"),
    "GBP": Decimal("0.8574"),
    "JPY": Decimal("163.27"),
    "SEK": Decimal("11.362"),
    "USD": Decimal("1.0871"),
}

LARGEST = Decimal("1000000000000")


@app.get("/rates")
def rates():
    """All rates, against one euro."""
    return jsonify(base="EUR", rates={code: str(rate) for code, rate in RATES.items()})


@app.get("/rates/<code>")
def rate(code):
    """One rate, against one euro."""
    return jsonify(base="EUR", code=code, rate=str(known(code)))


@app.post("/conversions")
def convert():
    """An amount in another currency: {"amount": "10.50", "from": "EUR", "to": "USD"}."""
    order = request.get_json()
    if not isinstance(order, dict):
        abort(400, "the body must be a JSON object")
    try:
        amount = Decimal(str(order.get("amount")))
    except InvalidOperation:
        abort(400, "`amount` must be a decimal number")
    if not amount.is_finite() or abs(amount) >= LARGEST:
        abort(400, f"`amount` must be below {LARGEST}")
    result = amount / known(order.get("from")) * known(order.get("to"))
    return jsonify(amount=str(result.quantize(Decimal("0.01"))), currency=order["to"]), 201


def known(code):
    """The rate of a currency, or an answer that says there is none."""
    if not isinstance(code, str) or code not in RATES:
        abort(404, f"no rate for {code!r}; known: {', '.join(RATES)}")
    return RATES[code]


@app.errorhandler(400)
@app.errorhandler(404)
@app.errorhandler(405)
@app.errorhandler(415)
def refuse(error):
    """Errors as JSON, like everything else."""
    return jsonify(error=error.description), error.code
