"""WHO MAY, AND WHAT CAN BE DONE. Imports models only; knows nothing of Flask."""
