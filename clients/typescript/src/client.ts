/** A client of img_ml_verify's HTTP API, for browsers and Node. Knows nothing of images; the types are the server's. */

import type { Answers, BatchLine, FeedbackTaken, JobAnswer, Models, Problem, Verdict } from "./answers.js";

export type * from "./answers.js";

/** A URL, or the file itself. */
export type Image = string | Blob;
export interface Options {
  /** Heatmaps and a report are made, too. */
  artifacts?: boolean;
  /** Whether the label holds for copies of the image; the work of five images. */
  stability?: boolean;
}
/** One message of a job's progress. */
export type Progress =
  | { event: "stage"; data: { stage: JobAnswer["stage"]; seconds: number } }
  | { event: "verdict"; data: Verdict }
  | { event: "error"; data: Problem };

const TRIES = 5; // of a request that a busy server put off
const POLL_MS = 500;

/** The server's problem details (RFC 9457). `code` is one of the server's docs/errors.md. */
export class Refused extends Error {
  readonly code: string;

  constructor(readonly problem: Problem) {
    super(`${problem.code}: ${problem.detail}`);
    this.name = "Refused";
    this.code = problem.code;
  }
}

export class Client {
  readonly #url: string;
  readonly #headers: Record<string, string>;

  /**
   * @param url where the server listens
   * @param key where the server asks for one
   */
  constructor(url = "http://127.0.0.1:8000", key = "") {
    this.#url = url.replace(/\/+$/, "");
    this.#headers = key ? { Authorization: `Bearer ${key}` } : {};
  }

  /** The verdict on one image, however long it takes. Throws `Refused`. */
  async verify(image: Image, options: Options = {}): Promise<Verdict> {
    let answer: Answers["POST /v1/verify"] = await this.#asked("POST /v1/verify", `/v1/verify?${query(options)}`, one(image));
    while ("status" in answer) {
      if (answer.error) throw new Refused(answer.error);
      if (answer.verdict) return answer.verdict;
      await pause(POLL_MS);
      answer = await this.#asked("GET /v1/jobs/{job_id}", link(answer, "self"));
    }
    return answer;
  }

  /** A job that has begun; `watch` tells how it goes on. */
  async begin(image: Image, options: Options = {}): Promise<JobAnswer> {
    const asked = query({ ...options, async: true });
    return (await this.#asked("POST /v1/verify", `/v1/verify?${asked}`, one(image))) as JobAnswer; // async: always a job
  }

  /** A job's stages as they begin, then its verdict or its error. */
  async *watch(job: JobAnswer): AsyncGenerator<Progress> {
    let event = "";
    for await (const line of lines(await this.#sent(link(job, "events")))) {
      if (line.startsWith("event: ")) event = line.slice(7);
      if (line.startsWith("data: ")) yield { event, data: JSON.parse(line.slice(6)) } as Progress;
    }
  }

  /** A line for every file, as they are done: its `index`, and its `verdict` or its `error`. */
  async *verifyMany(images: readonly Blob[], options: Options = {}): AsyncGenerator<BatchLine> {
    const form = new FormData();
    for (const image of images) form.append("file", image);
    for (const [name, value] of Object.entries(options)) form.append(name, String(value));
    for await (const line of lines(await this.#sent("/v1/verify/batch", { method: "POST", body: form }))) {
      if (line) yield JSON.parse(line) as BatchLine;
    }
  }

  /** A heatmap (PNG), `preview` (JPEG) or `report` (HTML) of a verdict that was asked for with artifacts. */
  async artifact(verdict: Verdict, name: string): Promise<Blob> {
    const path = verdict.artifacts[name];
    if (!path) throw new RangeError(`no artifact ${name}; there are ${Object.keys(verdict.artifacts).join(", ") || "none"}`);
    return (await this.#sent(path)).blob();
  }

  /** Say what the image of a verdict is, where the server takes reports. */
  feedback(verdict: Verdict, label: "real" | "ai", why = ""): Promise<FeedbackTaken> {
    return this.#asked("POST /v1/feedback", "/v1/feedback", json({ sha256: verdict.sha256, label, why }));
  }

  /** What judges there. */
  models(): Promise<Models> {
    return this.#asked("GET /v1/models", "/v1/models");
  }

  /** The answer that the document promises for an operation. */
  async #asked<K extends keyof Answers>(_operation: K, path: string, request: RequestInit = {}): Promise<Answers[K]> {
    return (await (await this.#sent(path, request)).json()) as Answers[K];
  }

  /** Comes back when a busy server says when. */
  async #sent(path: string, request: RequestInit = {}): Promise<Response> {
    for (let triesLeft = TRIES - 1; ; triesLeft--) {
      const headers = { ...(request.headers as Record<string, string> | undefined), ...this.#headers };
      const response = await fetch(this.#url + path, { ...request, headers });
      if (response.ok) return response;
      const after = response.headers.get("Retry-After");
      if (!triesLeft || after === null) throw new Refused((await response.json()) as Problem);
      await response.body?.cancel();
      await pause(Number(after) * 1000);
    }
  }
}

function query(options: Options & { async?: boolean }): string {
  return new URLSearchParams(Object.entries(options).map(([name, value]) => [name, String(value)])).toString();
}

function one(image: Image): RequestInit {
  if (typeof image === "string") return json({ url: image });
  const form = new FormData();
  form.append("file", image);
  return { method: "POST", body: form };
}

function json(body: object): RequestInit {
  return { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
}

function link(job: JobAnswer, name: string): string {
  const path = job.links[name];
  if (!path) throw new RangeError(`the server names no ${name} of the job`);
  return path;
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

async function* lines(response: Response): AsyncGenerator<string> {
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = (rest + value).split("\n");
      rest = parts.pop() ?? "";
      yield* parts;
    }
    if (rest) yield rest;
  } finally {
    await reader.cancel(); // who stops early ends the connection
  }
}
