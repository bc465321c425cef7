// The server of the settings: where it is, and what it says of an image. Knows no page.

export const DEFAULTS = { server: "http://127.0.0.1:8000", key: "" };
const POLL_MS = 500;

export async function settings() {
  return chrome.storage.local.get(DEFAULTS);
}

/** The verdict, or an Error whose message is for the person. */
export async function judge(body) {
  let answer = await ask("/v1/verify", { method: "POST", body: JSON.stringify(body) });
  while (answer.status) {
    if (answer.status === "failed") throw new Error(answer.error.detail);
    if (answer.status === "done") return answer.verdict;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    answer = await ask(answer.links.self);
  }
  return answer;
}

export function models() {
  return ask("/v1/models");
}

async function ask(path, request = {}) {
  const { server, key } = await settings();
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(server + path, { ...request, headers });
  } catch {
    throw new Error(
      `No answer from ${server}. Is it running, and does its IMGV_API_ORIGINS list ${location.origin}? The options have the address.`,
    );
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.detail ?? `the server answered ${response.status}`);
  return answer;
}
