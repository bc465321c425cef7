"""What a file says of its own origin: claims, C2PA, generator signatures, watermarks, camera records."""
