"""What scripts/manage.py and the tests share: the environment, a real ComfyUI and its HTTP client."""
