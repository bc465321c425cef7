"""The model's life: collect, validate, retrain, register, promote, watch for drift. No verdict imports any of it."""
