"""What everything else runs on: compiled kernels, threads, devices, notices."""
