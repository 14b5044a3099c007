"""The parts of `rmsprop.compare`: problems, candidates, training as replicas, statistics, the report."""
