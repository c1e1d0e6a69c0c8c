// Makes legitimate requests with Node's fetch, checks every answer, and prints what happened, as JSON.
//
// Usage: node honest.mjs KEY PLAN URL...; plan and output are those of honest.py. A new connection for each request is
// asked for with `Connection: close`, since fetch keeps its connections by itself.

import { createHash } from "node:crypto";

const PATIENCE = 120_000;
const FIELD = 4000;

const stream = (name, size) => createHash("shake256", { outputLength: size }).update(name).digest();
const text = (size) => stream("upload", size).toString("hex").slice(0, size);

function* pieces(size) {
  const whole = stream("upload", size);
  for (let at = 0; at < size; ) {
    const step = 1 + ((at * 31) % 16381);
    yield whole.subarray(at, at + step);
    at += step;
  }
}

// A stream has no length, so it is sent chunked.
function chunked(size) {
  const parts = pieces(size);
  return new ReadableStream({
    pull(controller) {
      const { value, done } = parts.next();
      if (done) controller.close();
      else controller.enqueue(value);
    },
  });
}

function wanted({ do: what, size }) {
  if (what === "get") return Buffer.from("hello\n");
  if (what === "download") return stream("download", size);
  const sent = what === "fields" ? Buffer.from(text(size)) : stream("upload", size);
  return Buffer.from(`${sent.length} ${createHash("sha256").update(sent).digest("hex")}\n`);
}

function request(key, { do: what, size, keep }) {
  const headers = { "X-API-Key": key };
  if (!keep) headers.Connection = "close";
  const options = { headers, signal: AbortSignal.timeout(PATIENCE) };
  if (what === "get") return ["/", options];
  if (what === "download") return [`/download/${size}`, options];
  if (what === "fields") {
    const padding = text(size);
    for (let at = 0; at < size; at += FIELD) {
      headers[`X-Padding-${String(at).padStart(6, "0")}`] = padding.slice(at, at + FIELD);
    }
    return ["/fields", options];
  }
  const body = what === "chunked" ? chunked(size) : stream("upload", size);
  return ["/upload", { ...options, method: "POST", body, duplex: "half" }];
}

const [key, plan, ...urls] = process.argv.slice(2);
const seconds = {};
const failures = [];
let served = 0;
for (const url of urls) {
  for (const step of JSON.parse(plan)) {
    const right = wanted(step);
    const begin = performance.now();
    for (let number = 0; number < step.count; number += 1) {
      try {
        const [path, options] = request(key, step);
        const response = await fetch(url + path, options);
        const answer = Buffer.from(await response.arrayBuffer());
        if (response.status === 200 && answer.equals(right)) {
          served += 1;
        } else {
          const seen = answer.subarray(0, 80).toString("latin1");
          failures.push(`${url} ${JSON.stringify(step)}: ${response.status}, ${answer.length} bytes, ${seen}`);
        }
      } catch (error) {
        failures.push(`${url} ${JSON.stringify(step)} after ${number}: ${error} ${error.cause ?? ""}`);
      }
    }
    seconds[step.do] = (seconds[step.do] ?? 0) + (performance.now() - begin) / 1000;
  }
}
process.stdout.write(JSON.stringify({ served, failures, seconds }));
