"""Methods played rank by rank in one process: no link, no process group."""
