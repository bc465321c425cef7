"""Command lines nobody imports: python -m scripts.NAME."""
