"""Whether this installation can do what the library promises: `crosscoders doctor`."""
