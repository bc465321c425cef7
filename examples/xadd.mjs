// A producer in Node without a package: XADD an image, wait for its verdict.   node examples/xadd.mjs photo.jpg
//
// The queue's server: REDIS_URL (redis:// or unix://), else the one that `python -m worker --embedded` starts.

import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { connect } from "node:net";
import { homedir } from "node:os";
import { basename, join } from "node:path";

const PREFIX = process.env.IMGV_QUEUE_PREFIX || "image_verify";
const FOLDER = process.env.IMGV_QUEUE_EMBEDDED_DIR || join(homedir(), ".cache/img_ml_verify/queue");
const PATIENCE = 120; // seconds

/** One command in the protocol of Redis: an array of bulk strings, so that bytes stay bytes. */
function encode(parts) {
  const bulks = parts.flatMap((part) => {
    const bytes = Buffer.from(part);
    return [`$${bytes.length}\r\n`, bytes, "\r\n"];
  });
  return Buffer.concat([`*${parts.length}\r\n`, ...bulks].map((part) => Buffer.from(part)));
}

/** The answer at the start of `bytes`, and undefined while it is not all there: a status, a number, a string, nothing. */
function decode(bytes) {
  const end = bytes.indexOf("\r\n");
  if (end < 0) return undefined;
  const [kind, head, from] = [String.fromCharCode(bytes[0]), bytes.toString("utf8", 1, end), end + 2];
  if (kind === "-") throw new Error(head);
  if (kind !== "$") return head;
  if (head === "-1") return null;
  const to = from + Number(head);
  return bytes.length < to + 2 ? undefined : bytes.toString("utf8", from, to);
}

async function ask(socket, ...parts) {
  socket.write(encode(parts));
  let bytes = Buffer.alloc(0);
  for await (const chunk of socket.iterator({ destroyOnReturn: false })) {
    bytes = Buffer.concat([bytes, chunk]);
    const answer = decode(bytes);
    if (answer !== undefined) return answer;
  }
  throw new Error("the queue's server has closed the connection");
}

const [file] = process.argv.slice(2);
if (!file) {
  console.error("usage: node examples/xadd.mjs IMAGE");
  process.exit(2);
}
const url = new URL(process.env.REDIS_URL || `unix://${join(FOLDER, "server.sock")}`);
const socket = connect(url.protocol === "unix:" ? { path: url.pathname } : { host: url.hostname, port: Number(url.port || 6379) });
if (url.password) await ask(socket, "AUTH", url.username || "default", decodeURIComponent(url.password));

const id = randomUUID();
await ask(socket, "XADD", `${PREFIX}:jobs`, "*", "job_id", id, "image", readFileSync(file), "filename", basename(file));
let answer = null;
for (let waited = 0; answer === null && waited < PATIENCE; waited += 0.1) {
  await new Promise((resolve) => setTimeout(resolve, 100));
  answer = await ask(socket, "GET", `${PREFIX}:verdict:${id}`);
}
socket.destroy();
if (answer === null) {
  console.error(`no answer within ${PATIENCE} s; does a worker run?`);
  process.exit(3);
}
console.log(answer);
process.exit(JSON.parse(answer).error ? 3 : 0);
