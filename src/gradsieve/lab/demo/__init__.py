"""The main job, shown: the same training by five ways of exchanging gradients."""
