"""plugin_name for mmdiff."""
