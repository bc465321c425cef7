// The page: takes images by file, drop, paste or address, and shows a card for each.

import { el, sentence, words } from "./dom.js";
import { conclusion, evidence, meaning, tierWords } from "./evidence.js";
import { earlier, forget, remember } from "./history.js";
import { models, useKey, verify } from "./server.js";
import { wrong } from "./wrong.js";

const at = (id) => document.getElementById(id);
const STAGES = { waiting: "Waiting for its turn", sending: "Sending", queued: "Waiting for its turn", fetching: "Downloading", decoding: "Reading the image", judging: "Measuring", reporting: "Drawing heatmaps", done: "Done" };
const ORDER = Object.keys(STAGES);

let known = null; // what the server says of its models
const counts = { checked: 0, running: 0, failed: 0, tiers: {} };

async function meet() {
  try {
    known = await models();
    at("access").hidden = true;
    const missing = known.detectors.filter((each) => each.enabled && !each.available).map((each) => each.name);
    at("about").textContent = `Profile ${known.profile}, fusion ${known.fusion.name}, ${known.runs}.` + (missing.length ? ` Without weights here: ${missing.join(", ")}.` : "");
  } catch (problem) {
    if (problem.code === "unauthorized") askForKey();
    else at("about").textContent = problem.message;
  }
}

function askForKey() {
  at("access").hidden = false;
  at("key").focus();
}

// ----------------------------------------------------------------------------------------------------------- one image

function check(image, expanded) {
  const name = typeof image === "string" ? image : image.name || "pasted image";
  const local = typeof image === "string" ? null : URL.createObjectURL(image);
  const card = new Card(name, local);
  at("results").prepend(card.element);
  run(image, card, expanded);
}

async function run(image, card, expanded) {
  counts.running++;
  tell();
  try {
    const verdict = await verify(image, at("stability").checked, (stage) => card.progress(stage));
    card.judged(verdict, expanded, image);
    counts.checked++;
    counts.tiers[verdict.tier] = (counts.tiers[verdict.tier] ?? 0) + 1;
    remember(verdict);
    listEarlier();
  } catch (problem) {
    if (problem.code === "unauthorized") askForKey();
    card.failed(problem, () => run(image, card, expanded));
    counts.failed++;
  }
  counts.running--;
  tell();
}

function tell() {
  const done = Object.entries(counts.tiers).map(([tier, count]) => `${known?.tiers[tier] ?? words(tier)}: ${count}`);
  if (counts.failed) done.push(`could not be checked: ${counts.failed}`);
  at("tally").textContent = [counts.running ? `Checking ${counts.running} ${counts.running > 1 ? "images" : "image"}…` : "", sentence(done.join(", "))].filter(Boolean).join(" ");
}

class Card {
  constructor(name, local) {
    this.local = local;
    this.title = el("h2", { class: "verdict" }, STAGES.waiting);
    this.say = el("p", { class: "say" });
    this.bar = el("progress", { max: ORDER.length - 1, value: 0, "aria-label": `Progress of ${name}` });
    this.thumb = local ? el("img", { class: "thumb", src: local, alt: "" }) : el("div", { class: "thumb" });
    if (local) this.thumb.addEventListener("error", () => this.thumb.replaceWith(el("div", { class: "thumb" })), { once: true });
    this.body = el("div", {}, el("p", { class: "name" }, name), this.title, this.say, this.bar);
    this.summary = el("div", { class: "summary" }, this.thumb, this.body);
    this.element = el("article", { class: "check", "aria-busy": "true", "aria-label": name }, this.summary);
  }

  progress(stage) {
    this.title.textContent = STAGES[stage] ?? words(stage);
    this.bar.value = ORDER.indexOf(stage);
    this.bar.hidden = false;
  }

  settle(kind, title, say) {
    this.element.className = `check ${kind}`;
    this.element.setAttribute("aria-busy", "false");
    this.title.textContent = title;
    this.say.textContent = say;
    this.bar.hidden = true;
    this.button?.remove();
  }

  judged(verdict, expanded, image) {
    this.settle(`tier-${verdict.tier}`, tierWords(verdict, known), meaning(verdict, known));
    this.body.append(el("p", { class: "name" }, conclusion(verdict)));
    const shown = evidence(verdict, known, this.local);
    shown.id = `evidence-${verdict.job_id}`;
    const toggle = (open) => {
      shown.hidden = !open;
      this.button.setAttribute("aria-expanded", open);
      this.button.textContent = open ? "Hide evidence" : "Show evidence";
    };
    this.button = el("button", { type: "button", class: "button", "aria-controls": shown.id, onclick: () => toggle(shown.hidden) });
    this.summary.append(this.button);
    const complaint = wrong(verdict, known, image);
    if (complaint) shown.append(complaint);
    this.element.append(shown);
    toggle(expanded);
  }

  failed(problem, again) {
    this.settle("failed", "This image could not be checked", sentenceOf(problem));
    this.button = el("button", { type: "button", class: "button", onclick: () => { this.settle("", STAGES.waiting, ""); again(); } }, "Try again");
    this.summary.append(this.button);
  }
}

const sentenceOf = ({ message, code }) => `${message.charAt(0).toUpperCase()}${message.slice(1)} (${code})`;

// ------------------------------------------------------------------------------------------------------------ ways in

function take(images) {
  const given = [...images];
  for (const image of given.reverse()) check(image, given.length === 1); // each goes on top, so the first ends up first
}

at("file").addEventListener("change", ({ target }) => {
  take(target.files);
  target.value = ""; // so that the same file can be chosen again
});

at("link").addEventListener("submit", (event) => {
  event.preventDefault();
  const url = at("url").value.trim();
  const usable = /^https?:\/\/\S+$/i.test(url);
  at("link-error").hidden = usable;
  at("link-error").textContent = usable ? "" : "Give an address that starts with http:// or https://.";
  at("url").setAttribute("aria-invalid", !usable);
  if (!usable) return at("url").focus();
  at("url").value = "";
  take([url]);
});

at("access").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(at("key").value.trim());
  at("key").value = "";
  meet();
});

const carriesFiles = (event) => event.dataTransfer?.types.includes("Files") || event.dataTransfer?.types.includes("text/uri-list");
for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    document.body.classList.add("dragging");
  });
}
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  document.body.classList.remove("dragging");
  const { files } = event.dataTransfer;
  const link = event.dataTransfer.getData("text/uri-list").split("\n")[0].trim();
  if (files.length) take(files);
  else if (/^https?:/i.test(link)) take([link]);
});

addEventListener("paste", (event) => {
  const typing = event.target.matches?.("input");
  const { files } = event.clipboardData;
  const text = event.clipboardData.getData("text").trim();
  if (files.length) take(files);
  else if (!typing && /^https?:\/\/\S+$/i.test(text)) take([text]);
  else return;
  event.preventDefault();
});

// ------------------------------------------------------------------------------------------------------------- history

function listEarlier() {
  const checks = earlier();
  at("history").hidden = !checks.length;
  at("checks").replaceChildren(
    ...checks.map(({ when, verdict }) =>
      el(
        "li",
        { class: `tier-${verdict.tier}` },
        el(
          "button",
          { type: "button", onclick: () => reopen(verdict) },
          el("span", {}, verdict.source),
          el("strong", {}, tierWords(verdict, known)),
          el("time", { datetime: when }, new Date(when).toLocaleString()),
        ),
      ),
    ),
  );
}

function reopen(verdict) {
  const card = new Card(verdict.source, null);
  at("results").prepend(card.element);
  card.judged(verdict, true);
  card.element.scrollIntoView({ block: "start" });
  card.button.focus({ preventScroll: true });
}

at("clear").addEventListener("click", () => {
  forget();
  listEarlier();
  at("results").focus();
});

await meet();
listEarlier();
document.documentElement.dataset.ready = "true";
