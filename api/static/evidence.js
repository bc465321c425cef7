// One verdict as a page section: words first, then the evidence. Says nothing that the verdict does not.

import { el, percent, sentence, svg, words } from "./dom.js";
import { picture } from "./server.js";

export const tierWords = (verdict, models) => sentence(models?.tiers[verdict.tier] ?? words(verdict.tier));
export const meaning = (verdict, models) => models?.tier_meanings[verdict.tier] ?? "";

/** The picture inside that label and tier follow. */
const deciding = (verdict) => (verdict.decided_by === "provenance" ? null : verdict.regions?.find((region) => region.decides));

export function conclusion(verdict) {
  const region = deciding(verdict);
  if (!region) return `${percent(verdict.fusion_prob)} probability of AI from the pixels`;
  return `${percent(region.fusion_prob)} probability of AI in a picture inside; ${percent(verdict.fusion_prob)} from the pixels of the whole`;
}

export function evidence(verdict, models, localPicture) {
  return el(
    "div",
    { class: "evidence" },
    facts(verdict, models),
    el("div", { class: "columns" }, scale(verdict, models), spread(verdict, models)),
    warnings(verdict),
    inside(verdict),
    holds(verdict, models),
    el("div", { class: "columns" }, pictures(verdict, models, localPicture), el("div", {}, reasons(verdict))),
    provenance(verdict, models),
    unavailable(verdict),
    metadata(verdict),
    signals(verdict, models),
    actions(verdict),
  );
}

// ---------------------------------------------------------------------------------------------------- the conclusion

function facts(verdict, models) {
  const values = Object.values(numbers(verdict, models));
  const measured = values.filter((value) => value !== null).length;
  const unsure = verdict.tier === "inconclusive";
  const byOrigin = verdict.decided_by === "provenance";
  const region = deciding(verdict);
  const rows = [
    [`Probability of AI, from the pixels${region ? " of the whole" : ""}`, percent(verdict.fusion_prob), "calibrated for equally many real and AI images"],
    ["How sure", unsure ? "Not sure enough to say" : percent(verdict.confidence), unsure ? null : "that the label is right"],
    [
      "What decided",
      byOrigin ? "What the file says of its origin" : region ? `A picture inside: ${percent(region.fusion_prob)}` : "The pixels",
      byOrigin ? "see Provenance for how far that can be trusted" : `${measured} of ${values.length} signals measured`,
    ],
    ["Label for programs", verdict.label, byOrigin ? "by provenance" : `AI from ${percent(verdict.threshold)} on`],
  ];
  return el("dl", { class: "facts" }, rows.map(([name, value, note]) => el("div", {}, el("dt", {}, name), el("dd", {}, value, note && el("small", {}, note)))));
}

/** Where the probability lies between the cuts of the tiers. */
function scale(verdict, models) {
  const cuts = models?.fusion.name === verdict.models.fusion ? models.fusion.thresholds.tiers : null;
  if (!cuts) return null;
  const zones = [
    [0, cuts.real, "zone-real", ""],
    [cuts.real, cuts.likely_real, "zone-real", "faint"],
    [cuts.likely_real, cuts.likely_ai, "zone-unsure", "faint"],
    [cuts.likely_ai, cuts.ai, "zone-ai", "faint"],
    [cuts.ai, 1, "zone-ai", ""],
  ];
  const label = `Probability of AI ${percent(verdict.fusion_prob)}, on a scale where up to ${percent(cuts.likely_real)} is on the side of real, from ${percent(cuts.likely_ai)} on the side of AI, and between them is inconclusive`;
  return section(
    "Where it stands",
    svg(
      "svg",
      { class: "scale", viewBox: "0 0 1000 24", preserveAspectRatio: "none", role: "img", "aria-label": label },
      zones.map(([from, to, zone, faint]) => svg("rect", { x: 1000 * from, y: 6, width: Math.max(0, 1000 * (to - from) - 2), height: 12, class: `${zone} ${faint}` })),
      svg("rect", { x: Math.min(992, 1000 * verdict.fusion_prob), y: 0, width: 8, height: 24, class: "here" }),
    ),
    el("div", { class: "ends quiet", "aria-hidden": "true" }, el("span", {}, "real"), el("span", {}, "inconclusive"), el("span", {}, "AI")),
    el("p", { class: "quiet" }, "The line is this image. The full colours are sure, the pale ones beside them likely, and the middle is inconclusive."),
  );
}

/** How scores of images of known origin are spread, real ones above and AI below, and where this one stands. */
function spread(verdict, models) {
  const known = models?.fusion.name === verdict.models.fusion ? models.fusion.histograms : null;
  const found = known?.[verdict.reference?.kind]?.[verdict.reference?.delivery];
  if (!found) return null;
  const { edges, real, ai } = found;
  const most = Math.max(...real, ...ai);
  const logOdds = Math.log(verdict.fusion_prob / (1 - verdict.fusion_prob));
  const within = Math.min(Math.max(logOdds, edges[0]), edges.at(-1));
  const bars = (shares, side, top) =>
    shares.map((share, index) => svg("rect", { x: index + 0.05, y: top(10 * share / most), width: 0.9, height: 10 * share / most, class: `towards-${side}` }));
  const ofKind = verdict.reference.kind === "all" ? "" : " of this kind";
  return section(
    "Beside images of known origin",
    svg(
      "svg",
      { class: "histogram", viewBox: `0 0 ${real.length} 20`, preserveAspectRatio: "none", role: "img", "aria-label": "How the scores of real images, above, and of AI images, below, are spread from surely real on the left to surely AI on the right; a line marks this image" },
      bars(real, "real", (height) => 10 - height),
      bars(ai, "ai", () => 10),
      svg("rect", { x: 1 + (within - edges[0]) / (edges[1] - edges[0]) - 0.08, y: 0, width: 0.16, height: 20, class: "here" }),
    ),
    el("p", { class: "quiet" }, `Bars upwards are real images${ofKind}, bars downwards AI images, from surely real on the left to surely AI on the right. The models had not seen them before. The line is this image.`),
  );
}

/** Pictures that were found in the picture, and judged by themselves. */
function inside(verdict) {
  if (!verdict.regions?.length) return null;
  const line = ({ kind, box: [x, y, width, height], fusion_prob, decides }) =>
    el("li", {}, `${sentence(kind)}, ${width} × ${height} pixels at ${x}, ${y}: ${percent(fusion_prob)} probability of AI by itself${decides ? "; the verdict follows it" : ""}.`);
  return section("Pictures inside", el("ul", { class: "plain" }, verdict.regions.map(line)));
}

/** The same image as delivered otherwise. */
function holds(verdict, models) {
  if (!verdict.stability) return null;
  const { flips, probabilities } = verdict.stability;
  const shapes = Object.entries(probabilities).map(([name, value]) => `${models?.shapes?.[name] ?? words(name)} ${percent(value)}`).join(", ");
  return section("Does it hold?", el("p", {}, `${flips ? "No, the label is another one in some shapes" : "Yes, the label is the same in every shape"}. Probability of AI: ${shapes}.`));
}

function warnings(verdict) {
  if (!verdict.warnings.length) return null;
  return section("Warnings", el("ul", { class: "plain warnings" }, verdict.warnings.map((text) => el("li", {}, text))));
}

// ------------------------------------------------------------------------------------------------------- the pictures

function pictures(verdict, models, localPicture) {
  const { preview, report, ...maps } = verdict.artifacts;
  const base = el("img", { alt: "The checked image" });
  const over = el("img", { alt: "", class: preview || localPicture ? "over" : "over alone", hidden: true });
  const note = el("figcaption", { "aria-live": "polite" }, preview || localPicture ? "The image, as it was read." : "The image itself is not kept.");
  if (preview) show(base, preview, note);
  else if (localPicture) base.src = localPicture;
  else base.hidden = true;
  const figure = el("figure", {}, el("div", { class: "stack" }, base, over), note);
  if (!Object.keys(maps).length) return figure;
  const strength = el("input", { type: "range", min: 0, max: 100, step: 5, value: 60 });
  const dim = () => { over.style.opacity = strength.value / 100; };
  strength.addEventListener("input", dim);
  const choose = async (name) => {
    over.hidden = !name;
    note.textContent = "The image, as it was read.";
    if (!name) return;
    dim();
    const title = models?.heatmaps[name] ?? words(name);
    note.replaceChildren(`${title}. `, el("span", { class: "whole" }, "Weak ", el("span", { class: "legend" }), " strong."), " Where it looks, not a verdict of its own.");
    over.alt = `Heatmap over the image: ${title}`;
    await show(over, maps[name], note);
  };
  const group = `map-${verdict.job_id}`;
  const choice = (name, title) =>
    el("label", {}, el("input", { type: "radio", name: group, value: name, checked: !name, onchange: () => choose(name) }), title);
  figure.append(
    el(
      "fieldset",
      {},
      el("legend", {}, "Show over the image"),
      choice("", "Nothing"),
      Object.keys(maps).map((name) => choice(name, models?.heatmaps[name] ?? words(name))),
      el("label", {}, "Opacity", strength),
    ),
  );
  return figure;
}

async function show(image, path, note) {
  try {
    image.src = await picture(path);
  } catch (problem) {
    image.hidden = true;
    note.textContent = problem.message;
  }
}

// --------------------------------------------------------------------------------------------------------- the reasons

function reasons(verdict) {
  const pulls = verdict.reasoning.filter((reason) => reason.contribution !== null);
  const most = Math.max(...pulls.map((reason) => Math.abs(reason.contribution)), 1e-9);
  const said = verdict.reasoning.filter((reason) => reason.feature === null);
  const behind = verdict.reasoning.filter((reason) => reason.feature !== null);
  const head = (first) => el("thead", {}, el("tr", {}, [first, "Pull"].map((name) => el("th", { scope: "col" }, name)), el("th", { scope: "col", class: "number" }, "Log-odds")));
  const pull = ({ contribution }) => [el("td", { class: "bar" }, bar(contribution, most)), el("td", { class: "number" }, amount(contribution))];
  return section(
    "Why",
    el(
      "ul",
      { class: "plain why" },
      said.map((reason) => el("li", {}, el("span", { class: "bar" }, reason.contribution === null ? null : bar(reason.contribution, most)), el("span", {}, reason.text, reason.contribution === null ? null : [" ", el("span", { class: "quiet" }, amount(reason.contribution))]))),
    ),
    el("p", { class: "quiet" }, "Bars: how far each kind of evidence moved the answer for this image, left towards real, right towards AI."),
    behind.length
      ? el(
          "details",
          {},
          el("summary", {}, "The strongest numbers behind it"),
          el(
            "table",
            {},
            head("Signal"),
            el("tbody", {}, behind.flatMap((reason) => [
              el("tr", { class: "pull" }, el("th", { scope: "row" }, breakable(reason.feature)), pull(reason)),
              el("tr", {}, el("td", { colspan: 3, class: "quiet" }, reason.text)),
            ])),
          ),
        )
      : null,
  );
}

function bar(contribution, most) {
  const width = (50 * Math.abs(contribution)) / most;
  return svg(
    "svg",
    { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { x: contribution > 0 ? 50 : 50 - width, y: 0, width, height: 10, class: `towards-${contribution > 0 ? "ai" : "real"}` }),
    svg("rect", { x: 49.7, y: 0, width: 0.6, height: 10, class: "axis" }),
  );
}

const amount = (contribution) => `${contribution > 0 ? "+" : "−"}${Math.abs(contribution).toFixed(2)} ${contribution > 0 ? "AI" : "real"}`;

/** A dotted name that a narrow column may break after its dots and underscores only. */
const breakable = (name) => name.split(/(?<=[._])/).flatMap((part, index) => (index ? [el("wbr"), part] : [part]));

function provenance(verdict, models) {
  const { claims = [], ...found } = verdict.provenance;
  const claim = ({ text, source, grade, generator }) => {
    const { name, meaning: worth } = models?.grades[grade] ?? { name: words(grade), meaning: "" };
    return el("li", {}, el("span", { class: "grade" }, name), text, generator ? ` (${generator})` : "", el("div", { class: "quiet" }, `Found in ${words(source)}${worth && `: ${worth}`}.`));
  };
  const chain = ["c2pa", "generator", "camera", "camera_capture", "iptc", "tc260"].filter((name) => found[name]);
  return section(
    "Provenance",
    claims.length
      ? el("ul", { class: "claims" }, claims.map(claim))
      : el("p", {}, "The file says nothing about its origin that we can read. That is common, and is no evidence either way."),
    chain.map((name) => el("details", {}, el("summary", {}, { c2pa: "C2PA chain", iptc: "IPTC", tc260: "TC260 label" }[name] ?? sentence(words(name))), table(flat(found[name]), ["Field", "Value"]))),
  );
}

// ---------------------------------------------------------------------------------------------------------- the rest

function unavailable(verdict) {
  const groups = new Map();
  for (const [name, why] of Object.entries(verdict.unavailable)) groups.set(why, [...(groups.get(why) ?? []), name]);
  if (!groups.size) return null;
  const reason = (why) => {
    const at = why.indexOf("python -m ");
    return at < 0 ? [why] : [why.slice(0, at), el("code", {}, why.slice(at))];
  };
  const line = ([why, names]) => el("li", {}, ...reason(why), el("div", { class: "quiet" }, names.join(", ")));
  return section("Not measured", el("p", { class: "quiet" }, "Nothing is guessed in their place."), el("ul", { class: "plain" }, [...groups].map(line)));
}

function metadata(verdict) {
  const { claims, c2pa, generator, iptc, tc260, camera_capture, ...found } = verdict.provenance;
  const file = { format: verdict.format, size: `${verdict.width} × ${verdict.height}`, sha256: verdict.sha256, ...found };
  return el("details", {}, el("summary", {}, "Metadata of the file"), table(flat(file), ["Field", "Value"]));
}

function signals(verdict, models) {
  const shown = Object.entries(numbers(verdict, models)).map(([name, value]) => [name, value === null ? "–" : Number(value.toPrecision(4))]);
  const made = Object.entries(verdict.models).map(([name, version]) => `${name} ${version}`).join(", ");
  return el("details", {}, el("summary", {}, `All ${shown.length} signals, and what measured them`), el("p", { class: "quiet" }, made), table(shown, ["Signal", "Value"]));
}

/** Every number of the verdict; its own go by the names that the server gives. */
const numbers = (verdict, models) => ({ ...Object.fromEntries((models?.numbers ?? []).map((name) => [name, verdict[name]])), ...verdict.signals });

function table(rows, [first, second]) {
  return el(
    "div",
    { class: "scroll" },
    el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, first), el("th", { scope: "col" }, second))), el("tbody", {}, rows.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, String(value)))))),
  );
}

/** Nested facts as rows: "dwt_dct.sd.bits", 136. */
function flat(value, path = "") {
  if (value === null || value === undefined) return [];
  if (typeof value !== "object") return [[path, value]];
  if (Array.isArray(value) && value.every((each) => typeof each !== "object")) return [[path, value.join(", ")]];
  return Object.entries(value).flatMap(([name, each]) => flat(each, path ? `${path}.${name}` : name));
}

function actions(verdict) {
  const stem = verdict.source.split(/[?#]/)[0].split("/").pop().replace(/[^\w.-]+/g, "_") || "image";
  const report = verdict.artifacts.report;
  return el(
    "div",
    { class: "actions" },
    el("button", { type: "button", class: "button", onclick: () => save(URL.createObjectURL(new Blob([JSON.stringify(verdict, null, 2)], { type: "application/json" })), `${stem}.json`) }, "Save JSON"),
    report ? el("button", { type: "button", class: "button", onclick: async () => save(await picture(report), `${stem}.html`) }, "Save HTML report") : null,
    el("button", { type: "button", class: "button", onclick: print }, "Print or save as PDF"),
  );
}

function save(address, name) {
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function print(event) {
  const check = event.target.closest(".check");
  for (const each of check.querySelectorAll("details")) each.open = true;
  check.classList.add("printed");
  document.body.classList.add("one");
  window.print();
  check.classList.remove("printed");
  document.body.classList.remove("one");
}

function section(title, ...children) {
  return el("section", {}, el("h3", {}, title), ...children);
}
