// Everything that the TypeScript client does, against a running API: node live.mjs CLIENT URL
import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

const [module, url, photo] = process.argv.slice(2);
const { Client, Refused } = await import(pathToFileURL(module).href);
const client = new Client(`${url}/`);
const image = new Blob([await readFile(photo)], { type: "image/jpeg" });
const letter = new Blob(["dear sir"]);

async function refusal(promise) {
  try {
    await promise;
  } catch (error) {
    if (error instanceof Refused) return [error.code, error.problem.status];
    throw error;
  }
  throw new Error("not refused");
}

const verdict = await client.verify(image, { artifacts: true });
const progress = [];
for await (const each of client.watch(await client.begin(image))) progress.push(each);
const failed = [];
for await (const each of client.watch(await client.begin(letter))) failed.push(each);
const batch = [];
for await (const line of client.verifyMany([image, letter], { stability: true })) batch.push(line);
console.log(
  JSON.stringify({
    verdict,
    preview: (await client.artifact(verdict, "preview")).type,
    noArtifact: await client.artifact(verdict, "none").catch((error) => error.constructor.name),
    progress,
    failed: failed.at(-1),
    batch: batch.sort((one, two) => one.index - two.index),
    refusals: [await refusal(client.verify(letter)), await refusal(client.verify("http://127.0.0.1/a.jpg"))],
    models: await client.models(),
    feedback: await client.feedback(verdict, "real", "I took it"),
  }),
);
