"""What steers a sieve from step to step: threshold policies, budgets and reports of other ranks."""
