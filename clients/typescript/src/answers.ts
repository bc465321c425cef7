// Written from the API's OpenAPI document: python -m scripts.write_clients

/** One line of a batch's answer. Lines come as images are done; `index` is the image's place in the request. */
export interface BatchLine {
  index: number;
  source: string;
  verdict?: Verdict | null;
  error?: Problem | null;
}

/** The answer of POST /classify and /classify_url, to the letter what older clients know; /predict has the tier. */
export interface Classification {
  classification: "real" | "fake";
  /** in the classification */
  confidence: number;
}

/** The settings at run time. */
export interface Config {
  /** how often they were changed */
  version: number;
  /** what holds now, by name */
  values: Record<string, unknown>;
  /** of these, what differs from the environment's settings by a change */
  changed: Array<string>;
  /** whose key made the last change */
  by: string;
  /** when, ISO 8601 */
  at: string;
  /** how many changes can be undone */
  can_undo: number;
}

export interface DetectorInfo {
  name: string;
  /** part of this profile */
  enabled: boolean;
  /** its weights are installed */
  available: boolean;
  /** why it is not available, with the command that installs it */
  reason: string;
  /** what it measures, and what the number means */
  features: Record<string, string>;
  weights: Array<WeightsFile>;
}

export interface FeedbackTaken {
  id: string;
  /** whether the image that was sent along is kept for review */
  image_kept: boolean;
}

export interface FusionInfo {
  name: string;
  inputs: Array<string>;
  thresholds: Record<string, unknown>;
  metrics: Record<string, unknown>;
  histograms: Record<string, Record<string, Histogram>>;
}

/** How hard a claim of this grade is to forge, in words. */
export interface GradeInfo {
  name: string;
  meaning: string;
}

export interface Health {
  status: "ok" | "unavailable";
  reason?: string;
}

/** Shares of real and of AI images by their log-odds: below the first edge, between edges, above the last. */
export interface Histogram {
  edges: Array<number>;
  real: Array<number>;
  ai: Array<number>;
}

/** Where a job stands. `verdict` when it is done, `error` when it failed. */
export interface JobAnswer {
  job_id: string;
  status: "running" | "done" | "failed";
  stage: "queued" | "fetching" | "decoding" | "judging" | "reporting" | "done" | "failed";
  /** self, events */
  links: Record<string, string>;
  verdict?: Verdict | null;
  error?: Problem | null;
}

/** The short answer of GET /model_info. */
export interface ModelInfo {
  model: string;
  version: string;
  profile: string;
  threshold: number;
  /** those that run */
  detectors: Array<string>;
  features: number;
}

/** What judges here, and the words that go with its answers. */
export interface Models {
  profile: string;
  /** promoted release that judges; empty: the installed models do */
  release: string;
  runs: "in process" | "workers";
  fusion: FusionInfo;
  detectors: Array<DetectorInfo>;
  forensics: Array<string>;
  tiers: Record<string, string>;
  /** what to make of an image of this tier, as a sentence */
  tier_meanings: Record<string, string>;
  /** of a claim in `provenance`, the hardest to forge first */
  grades: Record<string, GradeInfo>;
  /** whether POST /v1/feedback is taken, and images with it */
  feedback?: "no" | "reports" | "images";
  /** the verdict's own numbers, in order; `signals` has the others */
  numbers: Array<string>;
  heatmaps: Record<string, string>;
  /** in what shape an image was judged again, by names of `stability` */
  shapes: Record<string, string>;
}

/** What a detector says that the fusion artifact was not trained with: shown, without any weight in the verdict. */
export interface Opinion {
  detector: string;
  feature: string;
  value: number | null;
  used: boolean;
  figures: string;
  command: string;
}

/** The short answer of POST /predict. */
export interface Prediction {
  prediction: "AI" | "NON-AI";
  /** of AI, from the pixels */
  probability: number;
  /** in the prediction */
  confidence: number;
  tier: "real" | "likely_real" | "inconclusive" | "likely_ai" | "ai";
}

/** RFC 9457 problem details; `code` is one of docs/errors.md and never changes its meaning. */
export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  /** `detail`, by the name that older clients read */
  error: string;
  code: string;
  request_id: string;
}

/** One line of the explanation. `contribution` is in log-odds towards AI; None for a plain fact. */
export interface Reason {
  code: string;
  text: string;
  feature?: string | null;
  contribution?: number | null;
}

/** How rare the score is among images of known origin; shares in 0..1 with 95 % intervals over sources. */
export interface Reference {
  kind: string;
  kind_probability: number | null;
  delivery: string;
  real_as_high: number;
  interval: [number, number];
  ai_as_low: number;
  ai_interval: [number, number];
}

/** A picture inside the picture, judged by itself. */
export interface Region {
  kind: string;
  box: [number, number, number, number];
  fusion_prob: number;
  decides: boolean;
}

/** The family of generators that an image looks most like. A hint for people, never a claim of origin. */
export interface Resemblance {
  family: string;
  probability: number;
  right: number;
}

/** The probability of the same image delivered otherwise: as a web copy, a hard one, cropped, enlarged. */
export interface Stability {
  low: number;
  high: number;
  flips: boolean;
  probabilities: Record<string, number>;
}

/** What we tell the caller, and everything needed to explain it. Raw, final and why are kept apart: `fusion_prob` is what the pixels say, `label` and `tier` are what we conclude, `decided_by` says from what. */
export interface Verdict {
  schema_version: string;
  job_id: string | null;
  source: string;
  sha256: string;
  width: number;
  height: number;
  format: string;
  label: "AI" | "NON-AI";
  fusion_prob: number;
  threshold: number;
  confidence: number;
  reference: Reference | null;
  stability: Stability | null;
  resembles: Resemblance | null;
  tier: "real" | "likely_real" | "inconclusive" | "likely_ai" | "ai";
  decided_by: "fusion" | "provenance";
  dino_prob: number | null;
  fatformer_prob: number | null;
  ghostnet_score: number | null;
  clip_h14_prob: number | null;
  clip_bigg_prob: number | null;
  mantra_anomaly: number | null;
  exif_score: number | null;
  image_entropy: number | null;
  compression_level: number | null;
  signals: Record<string, number | null>;
  unavailable: Record<string, string>;
  reasoning: Array<Reason>;
  provenance: Record<string, unknown>;
  artifacts: Record<string, string>;
  regions: Array<Region>;
  beside: Array<Opinion>;
  embedding: Array<number> | null;
  models: Record<string, string>;
  timings_ms: Record<string, number>;
  warnings: Array<string>;
}

/** One weight file's card. */
export interface WeightsFile {
  name: string;
  file: string;
  sha256: string;
  size: number;
  licence: string;
  commercial: boolean;
  upstream: string;
  install: string;
}

/** What each operation answers when all is well. */
export interface Answers {
  "POST /v1/verify": Verdict | JobAnswer;
  "GET /v1/jobs/{job_id}": JobAnswer;
  "POST /v1/feedback": FeedbackTaken;
  "GET /v1/models": Models;
  "GET /v1/schema": Record<string, unknown>;
  "GET /healthz": Health;
  "GET /readyz": Health;
  "POST /classify": Classification;
  "POST /classify_url": Classification;
  "POST /predict": Prediction;
  "GET /health": Health;
  "GET /model_info": ModelInfo;
  "GET /v1/config": Config;
  "PATCH /v1/config": Config;
  "POST /v1/config/undo": Config;
}
