// What the theme leaves out for people without a mouse: a wide table scrolls by keyboard, the bar of a code
// block's buttons is no landmark of its own, and the search has a name.
new MutationObserver(() => {
  for (const wrap of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) wrap.tabIndex = 0;
  for (const bar of document.querySelectorAll(".md-code__nav:not([role])")) bar.setAttribute("role", "none");
  document.querySelector(".md-search:not([aria-label])")?.setAttribute("aria-label", "Search");
}).observe(document.documentElement, { childList: true, subtree: true });
