"""Detectors, and the conductor that turns images into verdicts. The only package that composes."""
