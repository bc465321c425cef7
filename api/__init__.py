"""The product over HTTP, and a page for people: verdicts from this process, or from workers behind Redis."""
