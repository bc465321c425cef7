// Where the server is. Saving asks the browser for the right to call it, and tries it.

import { models, settings } from "./server.js";

const element = (id) => document.getElementById(id);
const { server, key } = await settings();
element("server").value = server;
element("key").value = key;
element("origin").textContent = `IMGV_API_ORIGINS=${location.origin}`;

element("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const { origin, hostname } = new URL(element("server").value);
  // Browsers grant this on a click only, so nothing is awaited before.
  const granted = await chrome.permissions.request({ origins: [`${origin.split(":")[0]}://${hostname}/*`] });
  await chrome.storage.local.set({ server: origin, key: element("key").value.trim() });
  try {
    const { profile } = await models();
    element("said").textContent = `Saved. It answers, with the profile ${profile}.`;
  } catch (error) {
    element("said").textContent = `Saved. ${granted ? "" : "The browser was not given the right to call it. "}${error.message}`;
  }
});
