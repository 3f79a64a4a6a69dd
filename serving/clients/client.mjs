// Asks the served model journey for recommendations, from JavaScript (Node 18 or later, or a browser's `fetch`).
// Written by `tfmetarec export --serving-config`.
//
//   node client.mjs [HOST:PORT]

const server = process.argv[2] ?? "127.0.0.1:8501";
const url = `http://${server}/v1/models/journey/labels/stable:predict`;

// One user: what was met, oldest first, each with the label 1. Every list has one row for each user.
// Of the user's features nothing is known here: "" is text, NaN a number and length 0 a list that is not known.
const inputs = {
  "support": [[0, 1, 2]],
  "support_labels": [[1.0, 1.0, 1.0]],
  "support_length": [3],
  "user_segment": [""]
};

// TensorFlow Serving reads and writes NaN and Infinity as they are. JSON has neither: `JSON.stringify` would write
// null, which is refused, and `JSON.parse` would fail where too few items are left: their scores are -Infinity.
const TEXT_OR_NUMBER = /"(?:[^"\\]|\\.)*"|-?Infinity|NaN/g;
const write = (value) => {
  if (Array.isArray(value)) return `[${value.map(write).join(", ")}]`;
  if (typeof value !== "object") return typeof value === "number" ? String(value) : JSON.stringify(value);
  return `{${Object.entries(value).map(([name, entry]) => `"${name}": ${write(entry)}`).join(", ")}}`;
};
const read = (text) => JSON.parse(text.replace(TEXT_OR_NUMBER, (found) => (found[0] === '"' ? found : "null")));

const body = write({ signature_name: "adapt_and_recommend", inputs });
const response = await fetch(url, { method: "POST", body, signal: AbortSignal.timeout(10_000) });
const answer = read(await response.text());
if (!response.ok) {
  console.error(`${response.status}: ${answer.error}`);
  process.exit(1);
}
const { items, scores } = answer.outputs;
items[0].forEach((item, place) => console.log(`${item}\t${scores[0][place]?.toFixed(4) ?? "none left"}`));
