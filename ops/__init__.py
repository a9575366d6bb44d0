"""How it is started: the servers we bring along, the processes we watch, the checks before and after."""
