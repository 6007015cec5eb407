"""The main job, shown: the same training by four ways of exchanging gradients."""
