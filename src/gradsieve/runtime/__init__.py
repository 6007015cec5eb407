"""What everything else runs on: kernels, threads, devices, notices, private names of torch."""
