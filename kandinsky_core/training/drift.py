"""Alias of `kandinsky_core.training.studies.drift`, for commands that name this file."""

from .studies.drift import main

if __name__ == "__main__":
    main()
