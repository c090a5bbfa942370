"""Alias of `kandinsky_core.training.studies.sparsity`, for commands that name this file."""

from .studies.sparsity import main

if __name__ == "__main__":
    main()
