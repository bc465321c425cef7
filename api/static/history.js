// What this browser checked before, in this browser only: verdicts, never images.

const STORE = "img_ml_verify.history";
const MOST = 30; // about 10 kB each, of the 5 MB that browsers give

export function earlier() {
  try {
    return JSON.parse(localStorage.getItem(STORE)) ?? [];
  } catch {
    return []; // storage is off, or holds something else
  }
}

export function remember(verdict) {
  const checks = [{ when: new Date().toISOString(), verdict: { ...verdict, artifacts: {} } }, ...earlier()].slice(0, MOST);
  try {
    localStorage.setItem(STORE, JSON.stringify(checks));
  } catch {
    // storage is off or full: the page works without
  }
}

export function forget() {
  try {
    localStorage.removeItem(STORE);
  } catch {
    // storage is off: there is nothing to forget
  }
}
