"""The app named by WSGI_APP, unchanged, for servers that speak ASGI."""

import importlib
import os

from a2wsgi import WSGIMiddleware

app = WSGIMiddleware(importlib.import_module(os.environ["WSGI_APP"]).app, workers=16)
