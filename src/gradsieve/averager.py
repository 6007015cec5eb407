"""Any training loop: average gradients through the sieve where no DDP calls a hook."""
