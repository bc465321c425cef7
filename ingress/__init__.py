"""Every hostile byte ends here: fetching, decoding in a confined child, and reading what a file says of itself."""
