"""Networks on several processes or GPUs."""
