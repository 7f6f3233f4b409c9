"""Page of a run that changes while the run goes on."""
