"""The paper's experiments, each with the controls it lacks: one file per experiment, all on one `Study`."""
