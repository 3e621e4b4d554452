"""The `dist` command: a shell above everything else, which nothing imports."""
