// The entry in an image's menu. What it opens does the work: a service worker may be stopped at any time.

const MENU = "judge";

chrome.runtime.onInstalled.addListener(() => {
  chrome.contextMenus.create({ id: MENU, title: "Was this image made by AI?", contexts: ["image"] });
});

chrome.contextMenus.onClicked.addListener((info, tab) => {
  const asked = new URLSearchParams({ tab: String(tab.id), frame: String(info.frameId ?? 0), src: info.srcUrl });
  chrome.windows.create({ url: `verdict.html?${asked}`, type: "popup", width: 480, height: 640 });
});
