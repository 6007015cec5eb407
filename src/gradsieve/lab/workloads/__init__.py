"""Real models on real data, shared by the study, the benches and the tests.

Nothing in here knows of the sieve: a workload is what a user's own training script would be.
Import the modules directly, so that one workload does not pay for the imports of another.
"""
