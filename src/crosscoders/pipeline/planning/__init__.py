"""What a run will hold in memory and on disk, what fits, and how long it will take."""
