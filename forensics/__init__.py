"""Deterministic measurements of one image, one file per question. Knows no network and no model."""
