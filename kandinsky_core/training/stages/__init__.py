"""One file a training stage, each a command of its own."""
