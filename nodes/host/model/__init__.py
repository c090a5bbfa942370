"""The native MODEL: loading, conditioning, sampling, patches and caches."""
