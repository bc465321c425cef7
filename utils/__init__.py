"""Types, errors, settings and image ingress. Knows no other package of ours."""
