"""The `dist` command."""
