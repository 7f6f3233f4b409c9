"""The canary audit: many trainings with and without one unit, and what their difference betrays."""
