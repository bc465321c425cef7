// One image's verdict. Its bytes come from the page that shows it, as the person sees it; where that page may not read
// them, the server is given the address.

import { judge, models } from "./server.js";

const asked = new URLSearchParams(location.search);
const src = asked.get("src");
const element = (id) => document.getElementById(id);

/** Runs in the page. */
async function bytesOf(address) {
  try {
    const response = await fetch(address);
    if (!response.ok) return null;
    const reader = new FileReader();
    const read = new Promise((resolve, reject) => {
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(reader.error);
    });
    reader.readAsDataURL(await response.blob());
    return await read;
  } catch {
    return null; // another site's image, without CORS
  }
}

async function body() {
  const target = { tabId: Number(asked.get("tab")), frameIds: [Number(asked.get("frame"))] };
  let data = null;
  try {
    [{ result: data }] = await chrome.scripting.executeScript({ target, func: bytesOf, args: [src] });
  } catch {
    // a page that no extension may enter
  }
  if (data) {
    element("image").src = data;
    element("image").hidden = false;
    const name = src.startsWith("http") ? new URL(src).pathname.split("/").pop() : "";
    return { image_base64: data, filename: name || "image" };
  }
  if (/^https?:/.test(src)) return { url: src };
  throw new Error("The page does not give this image away. Save it, and drop it on your server's page.");
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const percent = (value) => (value > 0.99 ? "over 99 %" : value < 0.01 ? "under 1 %" : `${Math.round(100 * value)} %`);

function show(verdict, words) {
  const tier = element("tier");
  tier.textContent = sentence(words.tiers[verdict.tier]);
  tier.className = verdict.tier;
  element("meaning").textContent = words.tier_meanings[verdict.tier];
  const inside = verdict.decided_by === "fusion" && verdict.regions.find((region) => region.decides);
  const pixels = inside ? `a picture inside, ${percent(inside.fusion_prob)}` : "the pixels";
  const decided = verdict.decided_by === "fusion" ? pixels : "what the file says of its origin";
  element("number").textContent =
    `Probability of AI from the pixels: ${percent(verdict.fusion_prob)}. Decided by ${decided}. ${verdict.width} × ${verdict.height} ${verdict.format}.`;
  for (const { text } of verdict.reasoning.filter((each) => each.feature === null)) {
    const line = document.createElement("li");
    line.textContent = text;
    element("why").append(line);
  }
}

element("options").addEventListener("click", () => chrome.runtime.openOptionsPage());
try {
  const [verdict, words] = await Promise.all([body().then(judge), models()]);
  show(verdict, words);
} catch (error) {
  element("tier").textContent = "No verdict";
  const message = error.message || "it failed and does not say why";
  element("meaning").textContent = `${sentence(message)}${message.endsWith(".") ? "" : "."}`;
}
document.querySelector("main").setAttribute("aria-busy", "false");
