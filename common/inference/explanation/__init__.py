"""Pictures that show which parts of an image speak for a class."""
