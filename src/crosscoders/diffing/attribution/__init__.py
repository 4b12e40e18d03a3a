"""Which latents move a target, through which model's decoder: gradients, path integrals and their ratio."""
