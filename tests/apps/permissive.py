"""A Flask app that serves every method and path, and reads every body: whatever a server lets through is executed."""

from flask import Flask, request

from execution import recorded

app = Flask(__name__)
app.wsgi_app = recorded(app.wsgi_app)
# Servers let lengths of any size through; without a bound, reading such a body takes all memory.
app.config["MAX_CONTENT_LENGTH"] = 1 << 20


@app.before_request
def serve():
    return f"{len(request.get_data())}\n"
