"""One module per implementation; each has `build` and runs in the environment of its own requirements."""
