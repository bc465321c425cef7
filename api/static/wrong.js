// "This is wrong": tells the server what an image really is, for people to look at.

import { el } from "./dom.js";
import { report } from "./server.js";

let forms = 0; // so that names in one form are not those of another

/** A button and its form; nothing where the server takes no reports. `image`: the file that was judged, where it is here. */
export function wrong(verdict, models, image) {
  if (!models || models.feedback === "no") return null;
  const id = `wrong-${++forms}`;
  const keeps = models.feedback === "images" && image instanceof Blob;
  const choice = (label, text) => el("label", {}, el("input", { type: "radio", name: id, value: label, required: true }), ` ${text}`);
  const why = el("textarea", { rows: 2, maxlength: 2000 });
  const along = el("input", { type: "checkbox" });
  const said = el("p", { class: "quiet", role: "status" });
  const send = el("button", { type: "submit", class: "button" }, "Send");
  const form = el(
    "form",
    { class: "wrong", id, hidden: true },
    el("fieldset", {}, el("legend", {}, "What is the image really?"), choice("real", "Real"), choice("ai", "Made by AI")),
    el("label", {}, "How do you know? (optional) ", why),
    keeps && el("label", {}, along, " Send the image along, for people to look at"),
    send,
  );
  const button = el("button", { type: "button", class: "button", "aria-controls": id, "aria-expanded": "false" }, "This is wrong");
  button.addEventListener("click", () => {
    form.hidden = !form.hidden;
    button.setAttribute("aria-expanded", !form.hidden);
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    send.disabled = true;
    try {
      await report(verdict, form.elements[id].value, why.value.trim(), keeps && along.checked ? image : null);
      form.hidden = button.hidden = true;
      said.textContent = "Thank you. A person will look at it.";
    } catch (problem) {
      said.textContent = `${problem.message} (${problem.code})`;
      send.disabled = false;
    }
  });
  return el("div", {}, el("div", { class: "actions" }, button), form, said);
}
