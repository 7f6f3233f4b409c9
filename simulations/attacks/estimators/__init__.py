"""What scores and guesses prove: lower bounds on epsilon, with honest confidence."""
