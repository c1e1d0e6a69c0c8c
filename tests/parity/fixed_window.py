"""The fixed window of the `limits` library, on a clock that its input sets.

Reads one case a line, as JSON: a limit string, whether `test` is asked before each `hit`, and for each request its time in
eighths of a second and its cost. Writes a line for each: the window in seconds, and whether each request passed.
"""

import json
import sys
import types

import limits.storage.memory
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

now = 0.0
limits.storage.memory.time = types.SimpleNamespace(time=lambda: now)


def verdicts(case):
    global now
    limiter = FixedWindowRateLimiter(MemoryStorage())
    item = parse(case["limit"])
    passed = []
    for eighths, cost in case["requests"]:
        # Exact in a float, so that the two ends of a window are, too.
        now = eighths / 8
        asked = not case["ask"] or limiter.test(item, "client", cost=cost)
        passed.append(asked and limiter.hit(item, "client", cost=cost))
    return {"seconds": item.get_expiry(), "passed": passed}


for line in sys.stdin:
    print(json.dumps(verdicts(json.loads(line))), flush=True)
