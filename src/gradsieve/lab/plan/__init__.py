"""What a step will take, from what this machine and the link can do."""
