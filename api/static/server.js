// Talks to the server that this page came from, and to no other.

const KEY = "img_ml_verify.key";
const AT_ONCE = 3; // images of one browser in the server at a time
const PATIENCE = 20; // how often a busy server is asked again

export class Problem extends Error {
  constructor({ code = "network", detail = "The server does not answer. Check the connection and try again." } = {}) {
    super(detail);
    this.code = code;
  }
}

export const useKey = (key) => sessionStorage.setItem(KEY, key);

async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { "X-API-Key": key } : {}) };
  for (let again = 0; ; again++) {
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch {
      throw new Problem();
    }
    if (answer.ok) return answer;
    const wait = Number(answer.headers.get("Retry-After"));
    if (wait && again < PATIENCE) {
      await new Promise((resolve) => setTimeout(resolve, wait * 1000));
      continue;
    }
    throw new Problem(await answer.json().catch(() => ({ detail: `The server answered ${answer.status}.`, code: "http" })));
  }
}

export const models = async () => (await ask("/v1/models")).json();
export const picture = async (path) => URL.createObjectURL(await (await ask(path)).blob());

let running = 0;
const waiting = [];

/** Sends one image, a File or a URL, and tells its stages until the verdict is there. */
export async function verify(image, stability, onStage) {
  if (running >= AT_ONCE) await new Promise((resolve) => waiting.push(resolve));
  running++;
  try {
    onStage("sending");
    return await events(await submit(image, stability), onStage);
  } finally {
    running--;
    waiting.shift()?.();
  }
}

async function submit(image, stability) {
  const query = `/v1/verify?async=true&artifacts=true&stability=${stability}`;
  if (typeof image === "string") {
    const headers = { "Content-Type": "application/json" };
    return (await ask(query, { method: "POST", headers, body: JSON.stringify({ url: image }) })).json();
  }
  const form = new FormData();
  form.append("file", image, image.name || "pasted image");
  return (await ask(query, { method: "POST", body: form })).json();
}

/** Tells what an image really is. */
export async function report(verdict, label, why, image) {
  const said = { job_id: verdict.job_id, sha256: verdict.sha256, label, why };
  if (image) said.image_base64 = await base64(image);
  return (await ask("/v1/feedback", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(said) })).json();
}

const base64 = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Problem({ code: "file", detail: "The file cannot be read any more." }));
    reader.readAsDataURL(blob);
  });

/** Server-sent events by fetch, because EventSource cannot carry a key. A stream that breaks is asked for again. */
async function events(job, onStage) {
  for (let again = 0; ; again++) {
    try {
      const reader = (await ask(job.links.events)).body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        const blocks = text.split("\n\n");
        text = blocks.pop();
        for (const block of blocks) {
          const [, name, data] = /^event: (\w+)\ndata: (.*)$/.exec(block) ?? [];
          if (name === "stage") onStage(JSON.parse(data).stage);
          if (name === "verdict") return JSON.parse(data);
          if (name === "error") throw new Problem(JSON.parse(data));
        }
      }
    } catch (error) {
      if (error instanceof Problem && error.code !== "network") throw error;
    }
    if (again >= PATIENCE) throw new Problem();
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}
