"""Files, paths, threads and the terminal."""
