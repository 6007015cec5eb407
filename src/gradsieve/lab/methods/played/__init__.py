"""Methods whose ranks are played one after the other in one process, without torch.distributed."""
