"""How what we ship was made: data sets, deliveries, forgeries, the loop, heads, evaluation. No verdict needs it."""
