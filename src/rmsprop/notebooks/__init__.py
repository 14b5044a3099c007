"""The tutorial: `learn` is the notebook; the other files are what it computes and draws."""
