"""Lower bounds on epsilon from an attack's scores and guesses."""
