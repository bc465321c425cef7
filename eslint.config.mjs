// npx eslint@9 .   It names no package, so that nothing has to be installed beside eslint.
const names = (...given) => Object.fromEntries(given.map((name) => [name, "readonly"]));

const rules = {
  eqeqeq: ["error", "always", { null: "ignore" }],
  "no-const-assign": "error",
  "no-dupe-keys": "error",
  "no-fallthrough": "error",
  "no-implied-eval": "error",
  "no-redeclare": "error",
  "no-undef": "error",
  "no-unreachable": "error",
  "no-unused-vars": ["error", { ignoreRestSiblings: true }],
  "no-useless-escape": "error",
  "no-var": "error",
  "prefer-const": "error",
};
const browser = names(
  ...["Blob", "EventSource", "FileReader", "FormData", "SwaggerUIBundle", "TextDecoderStream", "URL", "URLSearchParams"],
  ...["addEventListener", "document", "fetch", "localStorage", "location", "sessionStorage", "setTimeout", "window"],
);
const node = names("Blob", "Buffer", "URL", "console", "process", "setTimeout");

export default [
  { ignores: ["**/node_modules/", "**/dist/", ".venv/", "site/", "clients/typescript/"] }, // TypeScript has its compiler
  { files: ["api/static/*.js"], languageOptions: { globals: browser }, rules },
  { files: ["docs/*.js"], languageOptions: { globals: { ...browser, ...names("MutationObserver") } }, rules },
  { files: ["clients/extension/*.js"], languageOptions: { globals: { ...browser, ...names("chrome") } }, rules },
  { files: ["**/*.mjs"], languageOptions: { globals: node }, rules },
];
