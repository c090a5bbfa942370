"""Shared by scripts/manage.py and the tests: the environment, a real ComfyUI, its HTTP client."""
