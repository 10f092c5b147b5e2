"""The simulated robot: MuJoCo arm and table, tasks, scripted expert, evaluation in virtual time."""
