"""Alias of `kandinsky_core.training.studies.preview`, for commands that name this file."""

from .studies.preview import main

if __name__ == "__main__":
    main()
