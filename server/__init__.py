"""Server of a federation, from enrollment over rounds to the files of a run."""
