// Makes requests with Node's fetch and prints what each was answered, as a JSON list.
//
// Usage: node refused.mjs (METHOD URL FIELD SIZE)...; arguments and output are those of refused.py.

const PATIENCE = 30_000;

const answers = [];
const words = process.argv.slice(2);
for (let at = 0; at < words.length; at += 4) {
  const [method, url, field, size] = words.slice(at, at + 4);
  const headers = { Connection: "close" };
  if (field !== "-") headers[field.slice(0, field.indexOf(": "))] = field.slice(field.indexOf(": ") + 2);
  const body = size === "0" ? undefined : Buffer.alloc(Number(size), "u");
  try {
    const answer = await fetch(url, { method, headers, body, signal: AbortSignal.timeout(PATIENCE) });
    answers.push({ status: answer.status, fields: [...answer.headers], body: await answer.text() });
  } catch (error) {
    answers.push({ error: `${error}: ${error.cause}` });
  }
}
console.log(JSON.stringify(answers));
