"""The demo: prune a small diffusion model that ships with the package, and look at what is left."""
