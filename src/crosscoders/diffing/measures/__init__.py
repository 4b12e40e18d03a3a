"""Measures of every latent, most of them from the moments of one pass over held-out rows."""
