"""Training of the nano family and of its larger relatives: data, stages, evaluation."""
