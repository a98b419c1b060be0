"""From runs to answers: which runs are compared, what the numbers say of them, and how that is shown."""
