"""Alias of `kandinsky_core.training.studies.cache`, for commands that name this file."""

from .studies.cache import main

if __name__ == "__main__":
    main()
