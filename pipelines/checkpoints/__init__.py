"""A model by any name -> its parts, ready to run."""
