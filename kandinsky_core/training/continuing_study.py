"""Alias of `kandinsky_core.training.studies.continuing`, for commands that name this file."""

from .studies.continuing import main

if __name__ == "__main__":
    main()
