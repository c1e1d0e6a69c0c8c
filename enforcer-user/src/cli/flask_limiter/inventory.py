"""Lists as JSON what an app's Flask-Limiter limits, and where; `inventory.rs` reads it.

Usage: python -c SCRIPT MODULE:APP, where APP is a Flask app, or a function without arguments that makes one.
Nothing is served. The app is imported, and its key functions are called with made-up requests, to see what they look at.
"""

import importlib
import importlib.metadata
import inspect
import json
import os
import sys

# What a made-up request has, and what it has instead when that is what is tried.
TRIED = {
    "source": ("192.0.2.1", "192.0.2.2"),
    "X-API-Key": ("first-key-of-all", "other-key-of-all"),
    "X-Client-Id": ("first", "other"),
    "X-Forwarded-For": ("198.51.100.1", "198.51.100.2"),
    "Authorization": ("Bearer first", "Bearer other"),
    "Cookie": ("session=first", "session=other"),
    "query": ("api_key=first", "api_key=other"),
}


def load(target):
    module, _, name = target.partition(":")
    sys.path.insert(0, os.getcwd())
    app = importlib.import_module(module)
    for part in name.removesuffix("()").split("."):
        app = getattr(app, part)
    return app() if name.endswith("()") or inspect.isfunction(app) else app


def made_up(app, changed):
    sent = {name: pair[name == changed] for name, pair in TRIED.items()}
    source, query = sent.pop("source"), sent.pop("query")
    return app.test_request_context("/", query_string=query, headers=sent, environ_base={"REMOTE_ADDR": source})


def name_of(function):
    return getattr(function, "__qualname__", None) or type(function).__qualname__


def place_of(function):
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{os.path.relpath(code.co_filename)}:{code.co_firstlineno}" if code else None


class Keys:
    """The key functions, each listed once."""

    def __init__(self, app):
        self.app, self.functions, self.listed = app, [], []

    def index(self, function):
        if function not in self.functions:
            self.functions.append(function)
            self.listed.append({"name": name_of(function), **self.try_out(function)})
        return self.functions.index(function)

    def try_out(self, function):
        def key(changed):
            with made_up(self.app, changed):
                return function()

        try:
            first = key(None)
            return {"looks_at": [name for name in TRIED if key(name) != first]}
        except Exception as error:
            return {"looks_at": [], "failed": type(error).__name__}


def limit(group, keys, limiter):
    """One string of limits, as the app gave it, and the conditions on it."""
    from limits import parse_many

    key = group.key_function or limiter._key_func
    described = {
        "key": keys.index(key),
        "windows": [],
        "scope": None,
        "shared": bool(group.shared),
        "per_method": bool(group.per_method),
        "methods": sorted(method.upper() for method in group.methods) if group.methods else None,
        "overrides": bool(group.override_defaults),
        "cost": None if callable(group.cost) else group.cost or 1,
    }
    called = ["exempt_when", "deduct_when", "on_breach", "error_message"]
    described["ignored"] = [name for name in called if getattr(group, name, None)]
    if getattr(group, "meta_limits", None):
        described["ignored"].append("meta_limits")
    if callable(group.scope):
        described["ignored"].append("scope")
    else:
        described["scope"] = group.scope
    if callable(group.limit_provider):
        described["dynamic"] = {"name": name_of(group.limit_provider), "place": place_of(group.limit_provider)}
        return described
    try:
        parsed = parse_many(group.limit_provider) if group.limit_provider else []
    except ValueError:
        described["malformed"] = group.limit_provider
        return described
    described["windows"] = [
        {"count": item.amount, "every": item.multiples, "unit": item.GRANULARITY.name} for item in parsed
    ]
    return described


def of_blueprint(app, manager, blueprint):
    """The groups that apply to a blueprint's views, as `LimitManager.blueprint_limits` chooses them."""
    from flask_limiter import ExemptionScope

    if not blueprint or blueprint not in app.blueprints:
        return []
    name = app.blueprints[blueprint].name
    own, ancestors = manager._blueprint_exemption_scope(app, blueprint)
    if own & ~(ExemptionScope.DEFAULT | ExemptionScope.APPLICATION):
        return []
    of_its_own = list(manager._blueprint_limits.get(name, []))
    alone = of_its_own and all(group.override_defaults for group in of_its_own)
    if alone or manager._blueprint_exemptions.get(name, ExemptionScope.NONE) & ExemptionScope.ANCESTORS:
        return of_its_own
    family = [part for part in blueprint.split(".") if part not in ancestors]
    return [group for part in family for group in manager._blueprint_limits.get(part, [])]


def inventory(app):
    from flask_limiter import ExemptionScope
    from flask_limiter.util import get_qualified_name

    limiters = app.extensions.get("limiter", ())
    if len(limiters) != 1:
        sys.exit(f"the app has {len(limiters)} limiters that are in use (RATELIMIT_ENABLED), and not one")
    [limiter] = limiters
    manager, keys, routes = limiter.limit_manager, Keys(app), []

    def limits(groups):
        return [limit(group, keys, limiter) for group in groups]

    for rule in app.url_map.iter_rules():
        blueprint = rule.endpoint.rpartition(".")[0]
        name = get_qualified_name(app.view_functions[rule.endpoint])
        of_route = manager._route_exemptions.get(name, ExemptionScope.NONE)
        exempt = manager.exemption_scope(app, rule.endpoint, blueprint)
        routes.append({
            "rule": rule.rule,
            "endpoint": rule.endpoint,
            "methods": sorted(rule.methods) if rule.methods else [],
            "host": rule.host or rule.subdomain or None,
            "is_static": rule.endpoint.split(".")[-1] == "static",
            "exempt_from_defaults": bool(exempt & ExemptionScope.DEFAULT),
            "exempt_from_application": bool(exempt & ExemptionScope.APPLICATION),
            "decorated": [] if of_route else limits(manager._decorated_limits.get(name, [])),
            "blueprint": limits(of_blueprint(app, manager, blueprint)),
        })
    settings = {
        "request_filter": limiter._request_filters,
        "meta_limits": limiter._meta_limits,
        "on_breach": limiter._on_breach,
        "on_meta_breach": limiter._on_meta_breach,
        "headers_enabled": limiter._headers_enabled,
        "in_memory_fallback": limiter._in_memory_fallback,
    }
    spanning = [name for name, converter in app.url_map.converters.items() if not converter.part_isolating]
    return {
        "version": importlib.metadata.version("flask-limiter"),
        "strategy": limiter._strategy,
        "defaults": limits(manager._default_limits),
        "application": limits(manager._application_limits),
        "routes": routes,
        "keys": keys.listed,
        "spanning": sorted(spanning),
        "settings": sorted(name for name, value in settings.items() if value),
        "behind_proxy": type(app.wsgi_app).__name__ == "ProxyFix",
    }


def main():
    # What the app prints while it is imported must not mix with the list.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    json.dump(inventory(load(sys.argv[1])), out)


main()
