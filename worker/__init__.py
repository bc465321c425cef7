"""The queue side of the product: jobs from Redis Streams, explained verdicts back."""
