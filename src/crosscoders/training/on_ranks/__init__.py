"""What a trainer does differently where a mesh spreads rows or latents over several ranks."""
