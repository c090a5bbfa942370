"""Alias of `kandinsky_core.training.studies.evaluate`, for commands that name this file."""

from .studies.evaluate import main

if __name__ == "__main__":
    main()
